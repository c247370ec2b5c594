"use strict";
/* Sorting and filtering of the stage table. Without this script the table is simply there, complete. */
(function () {
  const table = document.getElementById("stages");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const count = document.getElementById("count");
  const find = document.getElementById("find");
  const config = document.getElementById("config");
  const judgement = document.getElementById("judgement");

  function key(row, column, numeric) {
    const text = row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
    if (!numeric) return text.toLowerCase();
    return text === "" ? null : text === "NaN" ? Infinity : Number(text);
  }

  function sort(column) {
    const head = heads[column];
    const numeric = head.dataset.sort === "number";
    /* Numbers: largest first, for that is what one looks for. */
    const now = head.getAttribute("aria-sort");
    const order = now === null ? (numeric && column > 0 ? "descending" : "ascending")
      : now === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((one, two) => {
      const a = key(one, column, numeric), b = key(two, column, numeric);
      if (a === b) return one.dataset.place - two.dataset.place;
      if (a === null) return 1;
      if (b === null) return -1;
      return a < b ? -sign : sign;
    });
    body.append(...rows);
  }

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word))
        && (config.value === "*" || row.dataset.config === config.value || row.dataset.config === "")
        && (judgement.value === "*" || row.dataset.judgement === judgement.value));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = shown + " of " + rows.length + " rows";
  }

  rows.forEach((row, place) => { row.dataset.place = place; });
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  document.getElementById("filter").hidden = false;
  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
  [find, config, judgement].forEach((control) => control.addEventListener("input", filter));
  filter();
})();
