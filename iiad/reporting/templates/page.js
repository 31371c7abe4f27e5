"use strict";
// Tables sort by their headings: by number where every cell that is filled has one, else by text.
for (const table of document.querySelectorAll("table.table")) {
  table.querySelectorAll("thead th").forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortTable(table, heading, column));
  });
}

function sortTable(table, heading, column) {
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    return "key" in cell.dataset ? Number(cell.dataset.key) : null;
  };
  const text = (row) => row.cells[column].textContent;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a !== null && b !== null) return ascending ? a - b : b - a;
    if (a !== null || b !== null) return a === null ? 1 : -1; // rows without a number stay last
    return (ascending ? 1 : -1) * text(one).localeCompare(text(other), "en", { numeric: true });
  });
  body.append(...rows);
}

// Values on hover: of the thing under the pointer, or of the mark of a chart that is nearest to it.
const tip = document.getElementById("tip");
const REACH = 24; // pixels

function findMark(event) {
  const own = event.target.closest("[data-tip]");
  const plot = event.target.closest(".plot");
  if (own || !plot) return own;
  let nearest = null;
  let least = REACH;
  for (const mark of plot.querySelectorAll("[data-tip]")) {
    const box = mark.getBoundingClientRect();
    const far = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    if (far < least) [nearest, least] = [mark, far];
  }
  return nearest;
}

document.addEventListener("pointermove", (event) => {
  const mark = findMark(event);
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - box.width - 4);
  const above = event.clientY - box.height - 12;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
});
document.documentElement.addEventListener("pointerleave", () => { tip.hidden = true; });
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
// Only what scrolls is a stop of the Tab key.
function markScrolling() {
  for (const part of document.querySelectorAll(".scroll, pre")) {
    part.tabIndex = part.scrollWidth > part.clientWidth ? 0 : -1;
  }
}
markScrolling();
addEventListener("resize", markScrolling);
document.addEventListener("toggle", markScrolling, true);
