// What the gallery shows: the choices, which images they leave, and their place in the page's address.

// Small maps begin at a whole multiple of their pixels.
const initialSize = (columns) => (columns > 72 ? 176 : Math.max(1, Math.round(144 / columns)) * columns);

const initialState = (data) => ({
  image: 0,
  show: "all",
  run: 0,
  label: "",
  signed: false,
  own: data.runs.length === 1 && data.methods.length > 1, // methods differ more than runs do: one scale hides some
  outline: true,
  opacity: 100,
  size: initialSize(data.mapSize[1]),
  sequential: data.sequential[0],
  diverging: data.diverging[0],
});

const isRight = (image, run) => image.runs[run].prediction === image.label;

const FILTERS = {
  all: () => true,
  correct: (image, run) => isRight(image, run),
  wrong: (image, run) => !isRight(image, run),
  disagree: (image) => image.runs.some((answer) => answer.prediction !== image.runs[0].prediction),
};

// The indices of the images that the filters leave.
const visibleImages = (data, { show, run, label }) =>
  [...data.images.keys()].filter((i) => {
    const image = data.images[i];
    return FILTERS[show](image, run) && (label === "" || String(image.label) === label);
  });

const hasSigns = (data) => data.images.some((image) => image.signed.some((maps) => Object.keys(maps).length > 0));

const colorField = (state) => (state.signed ? "diverging" : "sequential");

// The top of a scale on which these packed maps fit; undefined maps are null.
const scaleOf = (maps) => Math.max(0, ...maps.filter(Boolean).map(([, , top]) => top)) || 1;

const toAddress = (state) => {
  try {
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  } catch {
    // a page that may not change its address still works
  }
};

// Read the address into `state`; what the data do not have stays as it was.
const fromAddress = (data, state) => {
  const allowed = {
    image: [...data.images.keys()],
    show: Object.keys(FILTERS),
    run: [...data.runs.keys()],
    label: ["", ...data.images.map((image) => String(image.label))],
    signed: hasSigns(data) ? [false, true] : [false],
    own: [false, true],
    outline: [false, true],
    opacity: Array.from({ length: 101 }, (_, i) => i),
    size: Array.from({ length: 385 }, (_, i) => 64 + i),
    sequential: data.sequential,
    diverging: data.diverging,
  };
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const value = allowed[name]?.find((choice) => String(choice) === text);
    if (value !== undefined) state[name] = value;
  }
};
