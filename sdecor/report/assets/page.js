// Starts the page's interactive parts: choosing one attribution method's section, and the gallery.

// Links to sections become a choice of one; print, and a page without scripts, shows all.
const chooseSections = (menu) => {
  const links = [...menu.querySelectorAll("a")];
  const choose = (chosen) => {
    for (const link of links) {
      link.toggleAttribute("aria-current", link === chosen);
      document.querySelector(link.hash).classList.toggle("unchosen", link !== chosen);
    }
  };
  for (const link of links) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      choose(link);
    });
  }
  choose(links.find((link) => link.hash === location.hash) ?? links[0]);
};

document.querySelectorAll("nav.methods").forEach(chooseSections);
const packed = document.getElementById("gallery-data");
if (packed) startGallery(JSON.parse(packed.textContent));
