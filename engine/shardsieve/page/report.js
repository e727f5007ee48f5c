"use strict";

// Shows the images that fit the filters. Without scripts all of them are shown.
const form = document.querySelector(".filters");
if (form) {
  const items = [...document.querySelectorAll(".gallery > li")];
  const words = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  const update = () => {
    const wanted = new FormData(form);
    const text = wanted.get("text").trim().toLowerCase();
    let shown = 0;
    for (const item of items) {
      const { galleries, reason } = item.dataset;
      const fits = (!wanted.get("gallery") || galleries.split(" ").includes(wanted.get("gallery")))
        && (!wanted.get("class") || item.dataset.class === wanted.get("class"))
        && (!wanted.get("reason") || reason === wanted.get("reason"))
        && words.get(item).includes(text);
      item.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
}
