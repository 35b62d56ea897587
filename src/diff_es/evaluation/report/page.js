// What the page does beyond being read: one slider over two pictures, points that can be chosen, a command to copy.
"use strict";

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const select = one(".chooser select");
const split = one(".split");
const cases = all(".cases input");

/** The cells of a contender's images: one of each noise, in the order of the cases. */
const cellsOf = (key) => all(`tr[data-images="${key}"] td`);

function put(image, source) {
  for (const name of ["src", "alt", "width", "height"]) image.setAttribute(name, source.getAttribute(name));
  image.classList.toggle("pixels", source.classList.contains("pixels"));
}

/** Both pictures under the slider, for the contender and the noise that are chosen. */
function showPictures() {
  const cells = cellsOf(select.value);
  const chosen = Math.max(0, cases.findIndex((input) => input.checked));
  one(".compare").hidden = cells.length === 0;
  if (cells.length === 0) return;
  put(one(".under", split), one("img", cellsOf("dense-1")[chosen]));
  put(one(".over", split), one("img", cells[chosen]));
  one(".tag.right", split).textContent = select.selectedOptions[0].textContent;
  cases.forEach((input, index) => {
    const [thumb, note] = [one(".thumb", input.parentNode), one("small", input.parentNode)];
    thumb.replaceChildren(one("img", cells[index]).cloneNode());
    note.textContent = one("small", cells[index]).textContent.replace(" dB", "");
  });
  const closeness = one("small", cells[chosen]).textContent;
  one(".told").textContent = `${cases[chosen].value}: SNR ${closeness}.`;
}

/** All that the page has of one contender at one budget. */
function choose(key) {
  select.value = key;
  for (const pick of all(".pick")) pick.setAttribute("aria-pressed", String(pick.dataset.point === key));
  for (const point of all(".point")) point.hidden = point.dataset.point !== key;
  if (split) showPictures();
}

/** Points of the plots as buttons, by mouse, finger or keyboard; the dense model is what all are compared with. */
function makeChoosable(pick) {
  const key = pick.dataset.point;
  if (!one(`option[value="${key}"]`, select)) return pick.classList.remove("pick");
  pick.setAttribute("role", "button");
  pick.setAttribute("tabindex", "0");
  pick.setAttribute("aria-label", one("title", pick).textContent);
  pick.addEventListener("click", () => choose(key));
  pick.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(key);
  });
}

async function copyCommand(button) {
  const code = one("#command");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);  // where a browser keeps its clipboard: one key is left to press
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

document.documentElement.classList.add("scripted");
for (const part of all("[data-scripted]")) part.hidden = false;
one(".command button")?.addEventListener("click", (event) => copyCommand(event.currentTarget));
if (split) {
  one("input", split).addEventListener("input", (event) => split.style.setProperty("--split", `${event.target.value}%`));
  for (const input of cases) input.addEventListener("change", showPictures);
  cases[0].checked = true;
}
if (select) {
  all(".pick").forEach(makeChoosable);
  select.addEventListener("change", () => choose(select.value));
  choose(select.value);
}
