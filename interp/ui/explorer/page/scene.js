// A scene as the address of the page holds it, and the list of scenes that can be gone back to.

export const EMPTY = { prompt: "", second: "", edits: [], answers: ["", ""], kept: [], beside: "" };

/** The part of an address after `#`, for a scene and the server's token. */
export function written(scene, token) {
  const fields = new URLSearchParams({ token });
  for (const name of ["prompt", "second"]) if (scene[name]) fields.set(name, scene[name]);
  for (const name of ["edits", "kept"]) if (scene[name].length) fields.set(name, scene[name].join(","));
  if (scene.beside) fields.set("beside", scene.beside);
  ["right", "wrong"].forEach((name, at) => { if (scene.answers[at]) fields.set(name, scene.answers[at]); });
  return `#${fields}`;
}

/** The scene and the token of an address. */
export function read(hash) {
  const fields = new URLSearchParams(hash.replace(/^.*?#/, "")), text = (name) => fields.get(name) ?? "";
  const [edits, kept] = ["edits", "kept"].map((name) => text(name).split(",").filter(Boolean));
  return { token: text("token"), scene: { prompt: text("prompt"), second: text("second"), edits, answers: [text("right"), text("wrong")], kept, beside: text("beside") } };
}

export const alike = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** Scenes with what made them; typing on replaces what was typed last, so that a word is one step back. */
export class History {
  constructor(scene) { this.steps = [{ scene, words: "start" }]; this.at = 0; }
  get scene() { return this.steps[this.at].scene; }
  add(scene, words, typed = false) {
    if (alike(scene, this.scene)) return false;
    const last = this.steps[this.at], kept = typed && last.typed ? this.at : this.at + 1;
    this.steps.splice(kept, this.steps.length, { scene, words, typed });
    this.at = kept;
    return true;
  }
  /** Take back a step that the server has refused. */
  drop() { this.steps.splice(this.at, this.steps.length); this.at = Math.max(0, this.at - 1); }
  go(at) { this.at = Math.min(Math.max(at, 0), this.steps.length - 1); }
}

const SAID = { zero: "zeroed", patch: "patched", scale: "times ", set: "set to " };
/** An edit in words: "L1H0@3:scale:0.5" is "L1H0 at 3 times 0.5". */
export function said(edit) {
  const [part, op, number] = edit.split(":"), [what, place] = part.split("@");
  return `${what.replace("->", " → ")}${place ? ` at ${place}` : ""} ${SAID[op] ?? op}${number ?? ""}`;
}
