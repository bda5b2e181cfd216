// The page: read the payload, draw its views one below the other, and say in words what went wrong.
const root = document.getElementById("views");
try {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  if (payload.schema !== 1) throw new Error(`this page reads payloads of version 1, not ${payload.schema}`);
  for (const [at, part] of payload.parts.entries()) {
    const place = document.createElement("div");
    const head = document.createElement("h2");
    head.textContent = part.title;
    head.id = `part-${at}`;
    const section = document.createElement("section");
    section.setAttribute("aria-labelledby", head.id);
    section.append(...(payload.parts.length > 1 ? [head] : []), place);
    root.append(section);
    if (payload.parts.length === 1) section.setAttribute("aria-labelledby", "title");
    VIEWS[part.view](place, part);
  }
} catch (error) {
  root.append(`This view cannot be drawn: ${error.message}`);
  throw error;
}
