// The widget in a notebook: a frame with the page, which may run its own script and reach nobody, and messages between
// it and the kernel. One widget may be shown in several places: each has a name, so that answers find their question.
function render({ model, el }) {
  const frame = document.createElement("iframe"), own = Math.random().toString(36).slice(2);
  const post = (message) => frame.contentWindow?.postMessage(message, "*");

  function fromPage({ source, data }) {
    if (source !== frame.contentWindow) return;
    if (data.kind === "ask" || data.kind === "stop") model.send({ ...data, view: own });
    else if (data.kind === "scene") { model.set("scene", data.scene); model.save_changes(); }
    else if (data.kind === "file") {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([data.text], { type: "text/html" }));
      link.download = data.name;
      link.click();
      URL.revokeObjectURL(link.href);
    }
  }
  const fromKernel = (message) => { if (message.view === own) post(message); };
  const fromNotebook = () => post({ kind: "scene", scene: model.get("scene") });

  addEventListener("message", fromPage);
  model.on("msg:custom", fromKernel);
  model.on("change:scene", fromNotebook);
  // Forms are needed for keys that submit them; where they would lead, the page's policy forbids.
  frame.setAttribute("sandbox", "allow-scripts allow-forms");
  frame.title = model.get("name");
  frame.name = JSON.stringify(model.get("scene"));
  frame.srcdoc = model.get("page");
  Object.assign(frame.style, { width: "100%", height: `${model.get("height")}px`, border: "0" });
  el.append(frame);
  return () => {
    removeEventListener("message", fromPage);
    model.off("msg:custom", fromKernel);
    model.off("change:scene", fromNotebook);
  };
}
export default { render };
