"use strict";
// Sorting of tables and filtering of examples; without this the page shows the same.
const value = (cell) => {
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = Number(text);
  return text !== "" && !Number.isNaN(number) ? number : text;
};
const compare = (a, b) => {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1; // what is missing goes last
};
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => compare(value(a.cells[column]), value(b.cells[column])));
      body.append(...(ascending ? rows : rows.reverse()));
    });
  });
}
const tools = document.querySelector(".tools");
if (tools) {
  tools.hidden = false;
  const words = tools.querySelector("input");
  const why = tools.querySelector("select");
  const apply = () => {
    const wanted = words.value.trim().toLowerCase();
    for (const example of document.querySelectorAll(".example")) {
      const fits = !why.value || example.dataset.why === why.value;
      example.hidden = !(fits && (!wanted || example.textContent.toLowerCase().includes(wanted)));
    }
    for (const task of document.querySelectorAll("details.task")) {
      const num = task.querySelectorAll(".example:not([hidden])").length;
      task.querySelector(".count").textContent = String(num);
      if (wanted) task.open = num > 0;
    }
  };
  words.addEventListener("input", apply);
  why.addEventListener("change", apply);
}
