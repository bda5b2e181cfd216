// Asking the server: one place that brings the token, and turns what it refuses into words.

export class Refused extends Error {
  constructor(status, words) { super(words); this.status = status; }
}

/** What the server answers; a signal that is aborted makes it stop computing. */
export async function ask(token, what, given = {}, signal = undefined) {
  let answer;
  try {
    answer = await fetch(`/api/${what}`, { method: "POST", headers: { "Content-Type": "application/json", "X-Interp-Token": token }, body: JSON.stringify(given), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer: has interp explore ended?");
  }
  const told = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, told.error);
  return told;
}
