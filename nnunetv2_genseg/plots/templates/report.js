"use strict";
// The gallery: only the pairs of the present page are in the document, so that a thousand pairs are no slower than ten.
const { views, pictures } = JSON.parse(document.getElementById("data").textContent);
const AT_ONCE = 6;
const [cards, place, note, previous, next, outlined] =
  ["cards", "place", "note", "previous", "next", "outlined"].map((id) => document.getElementById(id));
let view = views[0], first = 0;

function show(figure, picture, caption, text = caption) {
  const frame = figure.querySelector(".view"), images = frame.querySelectorAll("img");
  frame.style.aspectRatio = picture.size.join(" / ");
  images[0].src = "data:image/webp;base64," + picture.image;
  images[1].src = "data:image/png;base64," + picture.outline;
  for (const image of images) image.style.height = 100 * picture.slices.length + "%";
  figure.querySelector("figcaption").textContent = caption;
  return (fraction) => {
    const i = Math.round(fraction * (picture.slices.length - 1));
    for (const image of images) image.style.top = -100 * i + "%";
    const slice = "slice " + (picture.slices[i] + 1) + " of " + picture.of;
    images[0].alt = picture.of > 1 ? text + ", " + slice : text;
    return slice;
  };
}

function card(item) {
  const made = document.getElementById("card").content.cloneNode(true), figures = made.querySelectorAll("figure");
  const real = pictures["case " + item.case], drawn = pictures["pair " + item.pair];
  made.querySelector("h3").textContent = item.pair;
  made.querySelector("p").textContent = item.caption;
  const moves = [show(figures[0], real, "real: " + item.case), show(figures[1], drawn, "synthetic", "synthetic: " + item.pair)];
  const range = made.querySelector("input"), number = made.querySelector(".number"), most = drawn.slices.length - 1;
  const move = () => {
    const [, slice] = moves.map((to) => to(most ? range.value / most : 0));
    number.textContent = slice.slice(6);
    range.setAttribute("aria-valuetext", slice);
  };
  range.max = most;
  range.value = drawn.first;
  range.addEventListener("input", move);
  made.querySelector(".slices").hidden = most === 0;
  move();
  return made;
}

function refresh() {
  const items = view.items.slice(first, first + AT_ONCE), count = view.items.length;
  cards.replaceChildren(...items.map(card));
  note.textContent = view.note;
  place.textContent = count ? `${first + 1} to ${first + items.length} of ${count}` : "none";
  previous.disabled = first === 0;
  next.disabled = first + AT_ONCE >= count;
}

function go(step) {
  first += step;
  refresh();
}

previous.addEventListener("click", () => go(-AT_ONCE));
next.addEventListener("click", () => go(AT_ONCE));
outlined.addEventListener("change", () => cards.classList.toggle("plain", !outlined.checked));
for (const choice of document.querySelectorAll("input[name=view]"))
  choice.addEventListener("change", () => {
    view = views[choice.value];
    first = 0;
    refresh();
  });
refresh();
