"use strict";
// A slider at 1.3 shows layer 1, and layer 2 above it at 30 %.
for (const example of document.querySelectorAll(".example")) {
  const layers = [...example.querySelectorAll(".stack img")];
  const slider = example.querySelector("input");
  const shown = example.querySelector(".shown");
  slider.addEventListener("input", () => {
    const place = Number(slider.value);
    layers.forEach((layer, number) => {
      layer.style.opacity = number === 0 ? 1 : Math.min(Math.max(place - number + 1, 0), 1);
    });
    shown.textContent = layers[Math.round(place)].dataset.name;
  });
}
