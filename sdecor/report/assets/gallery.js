// The gallery: one image under every method and every run.

const part = (name) => document.getElementById(`g-${name}`);

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const makeOutline = () => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(svg.namespaceURI, "path"));
  return svg;
};

const runName = (tag, run) => make(tag, { class: "run", style: `--run: ${run.color}` }, run.name);

// A card for each method, with a picture, a map and an outline for each run.
const makeCards = (data) =>
  data.methods.map((method) => {
    const cells = data.runs.map((run) => {
      const label = data.runs.length > 1 ? `${method.title}, ${run.name}` : method.title;
      const [height, width] = data.mapSize;
      const canvas = make("canvas", { width, height, role: "img", "aria-label": label });
      const undefinedNote = make("span", { class: "undefined" }, "undefined");
      const stack = make("div", { class: "stack" }, make("img", { alt: "" }), canvas, makeOutline(), undefinedNote);
      const caption = data.runs.length > 1 ? [runName("figcaption", run)] : [];
      return { canvas, node: make("figure", {}, stack, ...caption) };
    });
    const row = make("div", { class: "runs" }, ...cells.map(({ node }) => node));
    return { method, cells, node: make("section", { class: "method" }, make("h4", {}, method.title), row) };
  });

const makeThumb = (data, image, i, choose) => {
  const marks = data.runs.map((_, run) => make("i", { class: isRight(image, run) ? "right" : "wrong" }));
  const verdicts = data.runs.map((run, k) => `${run.name} ${isRight(image, k) ? "correct" : "wrong"}`);
  const name = data.classes[image.label];
  const thumb = make(
    "button",
    { type: "button", role: "option", title: name, "aria-label": `Image ${i + 1}, ${name}: ${verdicts.join(", ")}` },
    make("img", { src: image.picture, alt: "" }),
    make("span", { class: "marks" }, ...marks),
  );
  thumb.addEventListener("click", () => choose(i));
  return thumb;
};

const drawMaps = (data, state, cards) => {
  const image = data.images[state.image];
  const maps = state.signed ? image.signed : image.maps;
  const common = scaleOf(maps.flatMap((run) => Object.values(run)));
  const colors = colorTable(data.colormaps[state[colorField(state)]]);
  for (const { method, cells, node } of cards) {
    node.hidden = maps.every((run) => !(method.name in run));
    cells.forEach((cell, run) => {
      const map = maps[run][method.name];
      cell.node.classList.toggle("absent", !map);
      if (!map) return;
      const [text, peak] = map;
      const scale = state.own ? scaleOf([map]) : common;
      paint(cell.canvas, decode(text), byteColors(colors, peak, scale, state.signed));
    });
  }
  drawScale(state, colors, common);
};

const drawScale = (state, colors, common) => {
  paint(part("bar"), Uint8Array.from({ length: 256 }, (_, i) => i), colors);
  const number = (value) => (value ? `${value < 0 ? "−" : ""}${Math.abs(value).toPrecision(2)}×` : "0");
  const own = state.signed ? ["most against", "0", "most for"] : ["0", "most"];
  const shared = (state.signed ? [-common, 0, common] : [0, common / 2, common]).map(number);
  const ticks = state.own ? own : shared;
  part("ticks").replaceChildren(...ticks.map((text) => make("span", {}, text)));
  part("bar").setAttribute("aria-label", `Color scale: ${ticks.join(", ")}`);
  part("unit").textContent = state.own
    ? "Each map on its own scale: colors of different maps cannot be compared."
    : "Share of the map’s saliency on one scale for all maps of this image; 1× is an even spread over the image."
      + (document.querySelector("#g-methods > [hidden]") ? " Methods without a sign are left out." : "");
};

const share = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)}\u00a0%`);

const drawImage = (data, state, visible) => {
  const image = data.images[state.image];
  const name = data.classes[image.label];
  for (const picture of document.querySelectorAll("#g-stage .stack img")) picture.src = image.picture;
  const path = image.object ? outlinePath(image.object, ...data.size) : "";
  for (const outline of document.querySelectorAll("#g-stage .stack path")) outline.setAttribute("d", path);
  part("image").alt = name;
  part("name").textContent = name;
  const filtered = visible.length < data.images.length ? ` (${data.images.length} in all)` : "";
  part("place").textContent = `image ${visible.indexOf(state.image) + 1} of ${visible.length}${filtered}`;
  const answers = data.runs.map((run, k) => {
    const { prediction, confidence } = image.runs[k];
    const verdict = isRight(image, k) ? ["right", "✓"] : ["wrong", "✗"];
    return { run, verdict, text: `${data.classes[prediction]} · ${share(confidence)}` };
  });
  part("answers").replaceChildren(
    ...answers.flatMap(({ run, verdict: [kind, mark], text }) => [
      runName("dt", run),
      make("dd", {}, make("span", { class: kind }, mark), ` ${text}`),
    ]),
  );
  const spoken = answers.map(({ run, text }) => `${run.name}: ${text}`).join("; ");
  part("status").textContent = `${part("place").textContent}, ${name}. ${spoken}`;
};

const drawStrip = (state, visible, thumbs) => {
  thumbs.forEach((thumb, i) => {
    const chosen = i === state.image;
    thumb.hidden = !visible.includes(i);
    thumb.setAttribute("aria-selected", String(chosen));
    thumb.tabIndex = chosen ? 0 : -1;
  });
  const strip = part("strip");
  const thumb = thumbs[state.image];
  // scrollIntoView would scroll the page, too
  strip.scrollTo({ left: thumb.offsetLeft - strip.offsetLeft - (strip.clientWidth - thumb.offsetWidth) / 2 });
  if (strip.contains(document.activeElement)) thumb.focus({ preventScroll: true });
};

const drawControls = (data, state) => {
  const field = colorField(state);
  part("colors").replaceChildren(...data[field].map((name) => make("option", { value: name }, name)));
  part("colors").value = state[field];
  for (const name of ["show", "run", "label", "opacity", "size"]) part(name).value = state[name];
  for (const name of ["signed", "own", "outline"]) part(name).checked = state[name];
  part("run").disabled = !["correct", "wrong"].includes(state.show);
  const root = document.getElementById("gallery");
  root.style.setProperty("--opacity", state.opacity / 100);
  root.style.setProperty("--cell", `${state.size}px`);
  root.classList.toggle("outlined", state.outline);
  root.classList.toggle("pixelated", state.size >= data.size[1]);
};

const keyActions = (data, state, update, move) => {
  const kinds = Object.keys(FILTERS).filter((kind) => kind !== "disagree" || data.runs.length > 1);
  const next = (choices, chosen) => choices[(choices.indexOf(chosen) + 1) % choices.length];
  const fade = (step) => () => update({ opacity: Math.min(100, Math.max(0, state.opacity + step)) });
  const flip = (name) => () => update({ [name]: !state[name] });
  const help = () => part("keys").showModal();
  return {
    ArrowLeft: () => move(-1), k: () => move(-1), ArrowRight: () => move(1), j: () => move(1),
    c: () => update({ show: next(kinds, state.show) }),
    r: () => update({ run: (state.run + 1) % data.runs.length }),
    s: () => hasSigns(data) && flip("signed")(),
    m: () => update({ [colorField(state)]: next(data[colorField(state)], state[colorField(state)]) }),
    n: flip("own"), o: flip("outline"), "+": fade(10), "=": fade(10), "-": fade(-10), "?": help,
  };
};

const listen = (data, state, update, move) => {
  for (const name of ["show", "label"]) part(name).addEventListener("input", (e) => update({ [name]: e.target.value }));
  for (const name of ["run", "opacity", "size"]) {
    part(name).addEventListener("input", (e) => update({ [name]: Number(e.target.value) }));
  }
  for (const name of ["signed", "own", "outline"]) {
    part(name).addEventListener("change", (e) => update({ [name]: e.target.checked }));
  }
  part("colors").addEventListener("input", (e) => update({ [colorField(state)]: e.target.value }));
  part("previous").addEventListener("click", () => move(-1));
  part("next").addEventListener("click", () => move(1));
  part("reset").addEventListener("click", () => update({ show: "all", label: "" }));
  part("help").addEventListener("click", () => part("keys").showModal());
  const actions = keyActions(data, state, update, move);
  const ends = { Home: 0, End: -1 };
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || part("keys").open) return;
    if (target.closest("select, .scroll") || (target.type === "range" && key.startsWith("Arrow"))) return;
    if (key in ends && part("strip").contains(target)) update({ image: visibleImages(data, state).at(ends[key]) });
    else if (key in actions) actions[key]();
    else return;
    event.preventDefault();
  });
  addEventListener("hashchange", () => {
    fromAddress(data, state);
    update({});
  });
};

const startGallery = (data) => {
  const root = document.getElementById("gallery");
  const state = initialState(data);
  const cards = makeCards(data);
  const thumbs = data.images.map((image, i) => makeThumb(data, image, i, (image) => update({ image })));
  const update = (changes, kept = true) => {
    Object.assign(state, changes);
    const visible = visibleImages(data, state);
    if (visible.length && !visible.includes(state.image)) [state.image] = visible;
    part("none").hidden = visible.length > 0;
    part("stage").hidden = visible.length === 0;
    drawControls(data, state);
    if (visible.length) {
      drawImage(data, state, visible);
      drawMaps(data, state, cards);
    }
    drawStrip(state, visible, thumbs);
    if (kept) toAddress(state);
  };
  const move = (step) => {
    const visible = visibleImages(data, state);
    const place = visible.indexOf(state.image) + step;
    if (visible.length) update({ image: visible.at(place % visible.length) });
  };

  root.style.setProperty("--shape", `${data.size[1]} / ${data.size[0]}`);
  part("methods").append(...cards.map(({ node }) => node));
  part("strip").append(...thumbs);
  part("run").append(...data.runs.map((run, k) => make("option", { value: k }, run.name)));
  const labels = [...new Set(data.images.map((image) => image.label))].sort((a, b) => a - b);
  part("label").append(...labels.map((label) => make("option", { value: label }, data.classes[label])));
  for (const svg of root.querySelectorAll(".stack svg")) svg.setAttribute("viewBox", `0 0 ${data.size[1]} ${data.size[0]}`);
  root.classList.toggle("single", data.runs.length === 1);
  if (data.runs.length < 2) {
    part("run").parentElement.hidden = true;
    part("show").querySelector("[value=disagree]").remove();
  }
  part("signed").parentElement.hidden = !hasSigns(data);
  part("outline").parentElement.hidden = data.images.every((image) => !image.object);
  root.hidden = false;
  listen(data, state, update, move);
  fromAddress(data, state);
  update({}, false);
};
