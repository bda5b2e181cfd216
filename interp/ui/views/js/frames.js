// The numbers that a report's page holds: a frame's columns, its rows as a file, and what each view needs of it.

const KINDS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

function decoded(column) {
  const bytes = Uint8Array.from(atob(column.data), (c) => c.charCodeAt(0));
  return new KINDS[column.type](bytes.buffer);
}

/** A frame: `rows`, the `names` of its columns, and `column(name)`, whose missing values are null. */
export function read(stored) {
  const known = new Map();
  const has = (name) => name in stored.columns;
  function column(name, texts = "values") {
    const key = `${texts} ${name}`;
    if (!known.has(key)) {
      const own = stored.columns[name], values = own[texts] ?? own.values;
      known.set(key, !own.values ? Array.from(decoded(own), (v) => (Number.isNaN(v) ? null : v))
        : own.data ? Array.from(decoded(own), (at) => values[at]) : Array(stored.rows).fill(values[0] ?? null));
    }
    return known.get(key);
  }
  const digits = (name) => (stored.columns[name].type === "float32" ? 8 : 17);
  return { rows: stored.rows, names: Object.keys(stored.columns), has, column, digits, shown: (name) => column(name, "shown") };
}

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** Lines of cells as the text of a file. */
export const csv = (lines) => `${lines.map((line) => line.map((cell) => quoted(String(cell ?? ""))).join(",")).join("\n")}\n`;

/** All rows of a frame as the text of a file; numbers in as many digits as the page holds. */
export function asFile(frame) {
  const columns = frame.names.map((name) => frame.column(name).map((v) =>
    typeof v === "number" && !Number.isInteger(v) ? `${Number(v.toPrecision(frame.digits(name)))}` : typeof v === "boolean" ? (v ? "True" : "False") : v));
  return csv([frame.names, ...Array.from({ length: frame.rows }, (_, row) => columns.map((column) => column[row]))]);
}

/** What a row is about, as people name it: L9H6, a layer's MLP, ...; null where it is about no one part. */
export function parts(frame) {
  const of = (name) => (frame.has(name) ? frame.column(name) : null);
  const component = of("component"), layer = of("layer");
  const axes = [["head", "H"], ["ssm_head", "S"], ["channel", "C"]].map(([name, letter]) => [of(name), letter]).filter(([values]) => values);
  return Array.from({ length: frame.rows }, (_, row) => {
    if (component) return component[row];
    const axis = axes.find(([values]) => values[row] !== null);
    if (!layer || layer[row] === null) return null;
    return axis ? `L${layer[row]}${axis[1]}${axis[0][row]}` : `mixer ${layer[row]}`;
  });
}

const different = (values) => [...new Set(values.filter((v) => v !== null))];
const sorted = (values) => (values.every((v) => typeof v === "number") ? values.sort((a, b) => a - b) : values);
const bounds = (frame) => ["ci_low", "ci_high"].map((name) => (frame.has(name) ? frame.column(name) : Array(frame.rows).fill(null)));
const key = (frame, names, row) => names.map((name) => `${name.replaceAll("_", " ")} ${frame.shown(name)[row]}`).join(", ");

/** What each view draws, made of a frame: {view name: (frame, stored) => payload}. */
export const PAYLOADS = {
  heatmap(frame, { value, across, names, what, n }) {
    const layers = frame.column("layer"), others = frame.column(across), [low, high] = bounds(frame);
    const own = layers.map((layer, row) => (layer === null || others[row] === null ? -1 : row)).filter((row) => row >= 0);
    const rows = sorted(different(own.map((row) => layers[row]))), columns = sorted(different(own.map((row) => others[row])));
    const maps = new Map();
    for (const row of own) {
      const which = key(frame, names, row);
      if (!maps.has(which)) maps.set(which, Object.fromEntries(["values", "low", "high"].map((name) => [name, { shape: [rows.length, columns.length], values: Array(rows.length * columns.length).fill(NaN) }])));
      const map = maps.get(which), at = rows.indexOf(layers[row]) * columns.length + columns.indexOf(others[row]);
      for (const [name, of] of [["values", frame.column(value)], ["low", low], ["high", high]]) map[name].values[at] = of[row] ?? NaN;
    }
    const told = `${what.replaceAll("_", " ")}, mean over ${n} prompt${n === 1 ? "" : "s"}`;
    return { rows: rows.map(String), columns: columns.map(String), named: ["layer", across.replaceAll("_", " ")],
      part: { head: (row, column) => `L${rows[row]}H${columns[column]}`, ssm_head: (row, column) => `L${rows[row]}S${columns[column]}` }[across],
      maps: [...maps].map(([which, map]) => ({ what: which ? `${which}: ${told}` : told, signed: true, ...map })) };
  },

  bars(frame, { value, names, what, n }) {
    const [low, high] = bounds(frame);
    const labels = Array.from({ length: frame.rows }, (_, row) => names.map((name) => (["component", "metric"].includes(name) ? frame.shown(name)[row] : `${name.replaceAll("_", " ")} ${frame.shown(name)[row]}`)).join(" "));
    return { labels, mean: frame.column(value), low, high, what: what.replaceAll("_", " "), n };
  },

  attention(frame) {
    const names = parts(frame), heads = different(names), n = 1 + Math.max(...frame.column("query")), values = Array(heads.length * n * n).fill(0);
    const query = frame.column("query"), keys = frame.column("key"), value = frame.column("value"), text = frame.shown("query_token"), tokens = Array(n).fill("");
    for (let row = 0; row < frame.rows; row++) {
      values[(heads.indexOf(names[row]) * n + query[row]) * n + keys[row]] = value[row];
      tokens[query[row]] = text[row];
    }
    return { tokens, names: heads, layers: [0], heads: heads.length, causal: query.every((at, row) => keys[row] <= at || value[row] === 0), pattern: { shape: [1, heads.length, n, n], values }, effect: null, stages: null };
  },

  lens(frame) {
    const of = (name) => (frame.has(name) ? frame.column(name) : Array(frame.rows).fill(null));
    const layer = of("layer"), site = of("site"), pos = of("pos"), value = of("value"), kind = of("lens");
    const top = frame.shown("top_token"), text = frame.shown("token");
    const named = { resid_pre: (at) => `into ${at}`, resid_post: () => "output" };
    const depth = layer.map((at, row) => (named[site[row]] ?? ((one) => `layer ${one}`))(at));
    const own = layer.map((_, row) => row).filter((row) => site[row] !== "resid_mid");
    const layers = different(own.map((row) => depth[row])), places = sorted(different(pos)), tokens = Array(places.length).fill("");
    const lenses = {};
    for (const row of own) {
      const lens = lenses[kind[row] === null ? "likeliest token" : `${kind[row]} lens`] ??= { words: [], tops: layers.map(() => places.map(() => [0])), ranks: null,
        probs: { shape: [layers.length, places.length, 1], values: Array(layers.length * places.length).fill(0) } };
      const at = layers.indexOf(depth[row]), place = places.indexOf(pos[row]), word = lens.words.indexOf(top[row]);
      tokens[place] = text[row];
      lens.tops[at][place] = [word < 0 ? lens.words.push(top[row]) - 1 : word];
      lens.probs.values[at * places.length + place] = value[row];
    }
    return { tokens, layers, lenses, answer: null };
  },

  graph(frame) {
    const of = (name) => frame.shown(name), nodes = new Map(), value = frame.column("value");
    const edges = Array.from({ length: frame.rows }, (_, row) => {
      for (const [name, label, depth] of [["sender", "from_label", "from_row"], ["receiver_node", "to_label", "to_row"]])
        nodes.set(of(name)[row], { name: of(name)[row], label: of(label)[row], row: of(depth)[row] });
      return { from: of("sender")[row], to: of("receiver_node")[row], reads: of("reads")[row], value: value[row] };
    });
    edges.sort((a, b) => Math.abs(b.value ?? 0) - Math.abs(a.value ?? 0));
    return { nodes: [...nodes.values()], edges, note: `${frame.rows} edges; wider is stronger, blue is above 0.` };
  },
};
