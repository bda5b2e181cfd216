// The guided tour: about twenty steps from letters to the next token, told with the numbers of this model and prompt.
// 1. Each step has a heading, a few sentences, and the part of the page that it speaks of, which is shown and framed.
// 2. Some ask the reader to do something, and see that it was done.
// 3. A step about what this model does not have says so, and how to see it.
import { make, shown, token } from "./views/base.js";

const EXAMPLE = "The bottle of milk is empty, so Mary gave the bottle to John because";
const IDS = "3 14 15 9 3 14"; // where a model has no tokenizer
// Parts that not every model has: how the kinds of its layers name them, what they are called, and a model with them.
const KINDS = { attn: /attn|shared/, mamba: /mamba/, mlp: /mlp|moe|shared/ };
const WITHOUT = { attn: ["attention", "interp explore --model smollm2-135m"], mlp: ["MLPs", "interp explore --model smollm2-135m"], mamba: ["state-space (Mamba) layers", "interp explore --model state-spaces/mamba-130m-hf"] };

const count = (value) => value.toLocaleString("en");
const place = ({ tokens, place: { position } }) => token(tokens[position], position);
const walked = (key) => `[data-step="${key}"]`;
/** The first layer that has a part, or -1. */
const has = ({ layers }, part) => layers.findIndex((kind) => KINDS[part].test(kind));
/** Whether the layer that is walked has a part. */
const here = ({ layers, place: { layer } }, part) => KINDS[part].test(layers[layer]);
/** The first numbers in the text of a step of the walk, as it prints them. */
const figures = (walk, key) => (walk.steps.find((step) => step.key === key)?.text ?? []).filter((piece) => piece.number !== undefined).map((piece) => shown(piece.number));

const POSITIONS = {
  rotary: ({ facts }) => ["This model turns the numbers of queries and keys in pairs, as hands on dials, by an angle that grows with the position (rotary embedding). How well two tokens fit then depends on how far apart they stand. Each dial is one pair", facts.d_head ? ` of the ${facts.d_head} numbers of a head` : "", "."],
  standard: () => ["This model has learned a row of numbers for each position, and adds it to the token’s row. The curve shows how alike the rows of two positions are: neighbours mostly are."],
  sinusoidal: () => ["This model adds sines and cosines of the position, of many wavelengths, to the token’s row. The curve shows how alike the rows of two positions are."],
  alibi: () => ["This model lowers the score between two tokens by how far apart they stand, each head by a slope of its own (ALiBi)."],
  none: (walk) => [`This model adds nothing for positions. It knows order because ${has(walk, "attn") < 0 ? "its layers read the tokens one after another" : "a token sees only what came before it"}.`],
};

// What each step tells (`walk` is the walk as it was drawn last), where it looks, and what it asks for.
const STEPS = [
  { title: "A model guesses the next token", at: "#prompts", always: true,
    text: (walk) => [["A language model does one thing: it reads a text and says what may come next. This page runs one on your machine. The tour shows all that happens on the way, with the model’s own numbers."], ...(walk ? [[`The prompt here has ${count(walk.facts.n)} tokens, and the model ${walk.facts.layers} layers.`]] : [])],
    ask: "Type a prompt, or take the one that is offered.", example: true, did: (now) => now.walk !== null },
  { title: "Text becomes tokens", at: walked("tokens"),
    text: (walk) => [["A model reads numbers, no letters. The text is cut into pieces (tokens) and each is replaced by its number (id) in a list of ", count(walk.facts.vocabulary), "."], [place(walk), ` is token ${walk.place.position} of ${count(walk.facts.n)}, counted from 0; its id is ${count(walk.ids[walk.place.position])}. Common words are mostly one token; rare words are cut into several.`]],
    ask: "Choose another token here: click it, or use the arrow keys and Enter.", did: (now, then) => now.walk.place.position !== then.walk.place.position },
  { title: "Tokens become vectors", at: walked("embedding"),
    text: (walk) => [["The id picks a row of a table, the embedding: ", `${count(walk.facts.d_model)} numbers that the model has learned for this token.`], ["All that follows is arithmetic with such vectors. Each cell is one number: blue is above 0, red is below. Point at one to read it."]] },
  { title: "Where does a token stand?", at: walked("position"),
    text: () => [["So far “dog bites man” and “man bites dog” would be the same heap of vectors. The model has to know which token comes first."], ["There are several ways. The next step shows the one of this model."]] },
  { title: "How this model knows positions", at: walked("position"), text: (walk) => [(POSITIONS[walk.facts.positions] ?? POSITIONS.none)(walk), [here(walk, "attn") || has(walk, "attn") < 0 ? `Here you see it for position ${walk.place.position}, in layer ${walk.place.layer}.` : `Layer ${walk.place.layer} has no attention. Go to layer ${has(walk, "attn")} to see what its attention does.`]] },
  { title: "One stream through all layers", at: walked("stream"),
    text: (walk) => [[`The vector of each token goes through ${walk.facts.layers} layers. Each layer reads it and adds something to it. This is the residual stream.`], ["Read off now, what it holds would make the guesses that are listed here."]],
    ask: "Go to another layer: press + beside “layer” above.", did: (now, then) => now.walk.place.layer !== then.walk.place.layer },
  { title: "Before reading: norm", at: walked("norm"), also: walked("norm2"),
    text: (walk) => [["Some vectors are long and some are short. So each part first brings what it reads to one size", ...(figures(walk, "norm")[0] ? [", here by dividing its numbers by ", figures(walk, "norm")[0]] : []), "."], ["Then only the direction of the vector counts."]] },
  { title: "Attention: query, key and value", needs: "attn", at: walked("qkv"),
    text: (walk) => [["In attention, tokens look at one another. A head makes three vectors from each token: a query (what am I looking for?), a key (what am I?) and a value (what do I hand on?)."], [`Layer ${walk.place.layer} has ${walk.units} heads; you follow head ${walk.place.unit}.`]] },
  { title: "Attention: how well do two tokens fit?", needs: "attn", at: walked("scores"),
    text: (walk) => [["The query of ", place(walk), " is multiplied, number by number, with the key of a token, and all is added up: the score."], [`With the token at which this head looks most, that makes ${figures(walk, "scores")[0]}. It is divided by ${figures(walk, "scores")[1]}, so that scores stay in a range that the next steps can work with.`]] },
  { title: "Attention: no looking ahead", needs: "attn", at: walked("mask"),
    text: (walk) => [["The model must guess what comes next, so it may not see it. Scores of later tokens are set to minus infinity (the mask)", walk.steps.find(({ key }) => key === "mask")?.items.length ? ": the empty triangle." : "."], [`From position ${walk.place.position}, ${walk.place.position + 1} of ${count(walk.facts.n)} tokens can be seen at most, its own among them.`]] },
  { title: "Attention: scores become shares", needs: "attn", at: walked("softmax"),
    text: (walk) => [["Softmax makes shares of the scores that add up to 1: large scores get most."], ["The token that gets most here gets ", `${figures(walk, "softmax").at(-1)}. The table has the arithmetic.`]] },
  { title: "Attention: what is handed on", needs: "attn", at: walked("z"),
    text: (walk) => [["Now the values of the tokens are added up, each times its share. So what one token knows arrives at another.", here(walk, "mamba") ? "" : " In this layer tokens meet in no other way."], ["Until the next layer, each position then works for itself."]] },
  { title: "Attention: many heads at once", needs: "attn", at: walked("write"),
    text: (walk) => [[`Each of the ${walk.units} heads writes a vector into the stream. The bars show how long each is; head ${walk.place.unit} writes one of length ${figures(walk, "write")[0]}.`], ["Read off directly, it speaks for some tokens and against others."]],
    ask: "Choose another head: click its bar, or use the arrow keys and Enter.", did: (now, then) => now.walk.place.unit !== then.walk.place.unit },
  { title: "All heads at a glance", needs: "attn", at: "#at-attention",
    text: (walk) => [[`Here is each of the ${walk.layers.filter((kind) => KINDS.attn.test(kind)).length} × ${walk.facts.heads} heads as a small picture: rows look, columns are looked at. A bright diagonal: the head looks at its own token. A first column: it looks at the start, which heads often do when they find nothing else.`]] },
  { title: "Does this head matter? Take it away", needs: "attn", at: "#change",
    text: () => [["A picture of attention says where a head looks, not whether that matters. To know it, take the head away (ablate it) and see what the model then says."]],
    ask: "Click a head in the pictures, or write a name such as L0H0 here, and press “ablate (zero)”.", did: (now) => now.scene.edits.length > 0 },
  { title: "What changed", needs: "attn", at: "#at-compare", or: "#change",
    text: (walk, scene) => [scene.edits.length ? ["These are the probabilities before and after. If nothing much changed, that head did not matter for this prompt; many do not."] : ["Nothing is changed at present. Go back one step to take a head away."], ["“Undo” brings it back."]] },
  { title: "The MLP: each token by itself", needs: "mlp", at: walked("mlp"),
    text: (walk) => [[`The ${walk.facts.experts ? `mixture of ${walk.facts.experts} experts` : "MLP"} works on each token alone.`, ` ${walk.facts.experts ? "Those that are chosen for a token have together" : "It has"} ${count(walk.facts.neurons)} neurons: each compares the vector with a pattern that it has learned, and adds another vector if it fits.`], ["Much of what a model knows of the world is thought to be kept here."]] },
  { title: "What each layer would say", at: "#at-lens", or: walked("after"),
    text: () => [["Read the stream off after each layer, as if it were the last: that is the logit lens. Follow the last column upwards or downwards: often the guess settles in the late layers."]] },
  { title: "From the vector to the next token", at: walked("logits"),
    text: (walk) => [[`At the end the vector is compared with one for each of the ${count(walk.facts.vocabulary)} tokens. The better the fit, the higher the score (logit).`], ["Softmax, which you know from attention, makes probabilities of them. The likeliest has ", `${figures(walk, "logits")[1]}.`]] },
  { title: "Choosing a token", at: "#at-next_token",
    text: () => [["One token is drawn by these probabilities. A low temperature makes the likely ones likelier; top-k and top-p cut the unlikely ones off. Move the sliders, and read the arithmetic."], ["The token goes to the end of the prompt, and all begins again: so a text is written."]],
    ask: "Choose a token in the table and press “append”.", did: (now, then) => now.scene.prompt.length > then.scene.prompt.length },
  { title: "Another way: Mamba", needs: "mamba", idea: "A state-space layer has no attention. It reads the tokens one after another and keeps a state of fixed size: a few numbers that stand for all that came before.", at: walked("select"),
    text: (walk) => [["A state-space layer has no attention. It reads the tokens one after another and keeps a state of fixed size", walk.facts.state ? `, ${walk.facts.state} numbers for each channel` : "", ". The step size says how much of each token is written into it, and how much of what was there fades."], [`The step size at position ${walk.place.position} is ${figures(walk, "select")[0]}.`]] },
  { title: "Mamba: what is remembered", needs: "mamba", idea: "The state has the same size however long the text is. So such a model is quick, but it has to forget.", at: walked("state"), or: walked("hidden"),
    text: (walk) => [["All that the layer knows of earlier tokens is in this state, however long the text: so it is quick, but it has to forget. Its length goes from ", `${figures(walk, "state")[0] ?? "–"} to ${figures(walk, "state")[1] ?? "–"} at this token.`]] },
];

/** The tour on a page. `host` has `now()` ({walk, scene}), `walk(place)`, `change(fields, words)`, `address()` and `text`. */
export function tour(root, host) {
  let at = null, then = null, framed = null, seenIn = null, arrived = false;
  const title = make("h2", { tabindex: "-1" }), words = make("div"), did = make("p", { class: "done", role: "status" }), of = make("span", { class: "note" });
  const button = (text, press) => make("button", { type: "button", class: "plain", onclick: press }, text);
  const back = button("back", () => go(at - 1)), next = button("next", () => go(at + 1)), leave = button("leave the tour", close);
  root.replaceChildren(title, words, did, make("div", { class: "bar" }, back, next, leave, of));
  root.addEventListener("keydown", (event) => {
    const press = { ArrowRight: next, ArrowLeft: back, Escape: leave }[event.key];
    if (press && !press.disabled) { event.preventDefault(); press.click(); }
  });

  const missing = (step, { walk }) => step.needs && walk && has(walk, step.needs) < 0;
  /** Whether the layer that is walked lacks what the step speaks of, and another has it. */
  const away = ({ needs }, walk) => needs && has(walk, needs) >= 0 && !here(walk, needs);
  /** Go to a layer that has what the step speaks of, once. */
  function arrive() {
    const { needs } = STEPS[at], { walk } = host.now();
    if (arrived || !walk) return;
    arrived = true;
    if (away(STEPS[at], walk)) host.walk({ ...walk.place, layer: has(walk, needs), unit: null });
  }
  function go(to) {
    if (to < 0 || to >= STEPS.length) return;
    at = to;
    then = host.now();
    arrived = false;
    seenIn = null;
    root.hidden = false;
    document.body.classList.add("on-tour");
    host.address();
    arrive();
    draw();
    frame();
    title.focus({ preventScroll: true });
  }
  function close() {
    at = null;
    root.hidden = true;
    document.body.classList.remove("on-tour");
    framed?.classList.remove("toured");
    framed = null;
    host.address();
    host.left();
  }
  function draw() {
    const step = STEPS[at], now = host.now(), ready = step.always || now.walk !== null;
    if (then.walk === null) then = now;
    title.textContent = step.title;
    of.textContent = `step ${at + 1} of ${STEPS.length}`;
    back.disabled = at === 0;
    next.disabled = at === STEPS.length - 1;
    const asks = step.ask && ready && !missing(step, now);
    let told;
    if (!ready) told = [["Type a prompt first: the step tells of its numbers."]];
    else if (missing(step, now)) told = [...(step.idea ? [[step.idea]] : []), [`This model has no ${WITHOUT[step.needs][0]}. To see this step: `, make("code", {}, WITHOUT[step.needs][1]), " (a model that is not on this machine is fetched once)."]];
    else if (now.walk && away(step, now.walk)) told = [[`Layer ${now.walk.place.layer} has none of what this step tells; layer ${has(now.walk, step.needs)} has.`]];
    else told = step.text(now.walk, now.scene);
    if (at === STEPS.length - 1) told = [...told, ["That was the tour. Everything stays here to be tried: other prompts, layers and heads."]];
    const offered = asks && step.example && !now.scene.prompt ? make("p", {}, button("take an example", () => host.change({ prompt: host.text() ? EXAMPLE : IDS }, "example"))) : "";
    words.replaceChildren(...told.map((piece) => make("p", {}, ...piece)), asks ? make("p", { class: "to-do" }, step.ask) : "", offered);
    const done = asks && now.walk !== null && step.did(now, then);
    if (did.textContent !== (done ? "Done. Go on with “next”." : "")) did.textContent = done ? "Done. Go on with “next”." : "";
  }
  /** Frame what the step speaks of, and bring it into view once. */
  function frame() {
    const step = STEPS[at], seen = (selector) => selector && [...document.querySelectorAll(selector)].find((one) => one.offsetParent !== null);
    const found = missing(step, host.now()) ? null : seen(step.at) ?? seen(step.also) ?? seen(step.or) ?? null;
    if (framed !== found) framed?.classList.remove("toured");
    framed = found;
    found?.classList.add("toured");
    if (found && seenIn !== step) { found.scrollIntoView({ block: "start" }); seenIn = step; }
  }
  return {
    go, get at() { return at; },
    /** The page has drawn something anew. */
    told() { if (at !== null) { arrive(); draw(); frame(); } },
  };
}

