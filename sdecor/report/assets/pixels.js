// From packed bytes to pixels.

const decode = (text) => {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
};

// A color map, "rrggbbrrggbb…", as 256 opaque pixels in the byte order of canvases.
const colorTable = (hex) => {
  const bytes = new Uint8Array(1024).fill(255);
  for (let i = 0; i < 768; i++) bytes[4 * Math.floor(i / 3) + (i % 3)] = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  return new Uint32Array(bytes.buffer);
};

// The color of each possible byte of a map whose largest byte stands for `peak`, where colors end at ±`scale`.
const byteColors = (colors, peak, scale, signed) =>
  Uint32Array.from({ length: 256 }, (_, byte) => {
    const part = signed ? 0.5 + ((byte - 128) / 254) * (peak / scale) : (byte / 255) * (peak / scale);
    return colors[Math.round(255 * Math.min(1, Math.max(0, part)))];
  });

const paint = (canvas, bytes, colors) => {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colors[bytes[i]];
  context.putImageData(image, 0, 0);
};

// The border between object pixels and others, on the edges of the pixels, as an SVG path.
const outlinePath = (text, height, width) => {
  const bits = decode(text);
  const inside = (y, x) => {
    if (y < 0 || x < 0 || y >= height || x >= width) return 0;
    const place = y * width + x;
    return (bits[place >> 3] >> (7 - (place & 7))) & 1;
  };
  let path = "";
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (inside(y, x) !== inside(y - 1, x)) path += `M${x} ${y}h1`;
      if (inside(y, x) !== inside(y, x - 1)) path += `M${x} ${y}v1`;
    }
  }
  return path;
};
