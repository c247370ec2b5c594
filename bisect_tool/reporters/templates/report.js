"use strict";
/* Sorting of tables, and filtering of the stage table. Without this script the tables are simply there, complete. */
(function () {
  function key(row, column, numeric) {
    const text = row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
    if (!numeric) return text.toLowerCase();
    return text === "" ? null : text === "NaN" ? Infinity : Number(text);
  }

  function sort(heads, body, column) {
    const head = heads[column];
    const numeric = head.dataset.sort === "number";
    /* Numbers: largest first, for that is what one looks for. */
    const now = head.getAttribute("aria-sort");
    const order = now === null ? (numeric && column > 0 ? "descending" : "ascending")
      : now === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const keyed = Array.from(body.rows, (row) => [key(row, column, numeric), row]);
    keyed.sort(([a, one], [b, two]) => {
      if (a === b) return one.dataset.place - two.dataset.place;
      if (a === null) return 1;
      if (b === null) return -1;
      return a < b ? -sign : sign;
    });
    body.append(...keyed.map(([, row]) => row));
  }

  document.querySelectorAll("#pairs, #stages").forEach((table) => {
    const body = table.tBodies[0];
    const heads = Array.from(table.tHead.rows[0].cells);
    Array.from(body.rows).forEach((row, place) => { row.dataset.place = place; });
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(heads, body, column));
      head.append(button);
    });
  });

  const rows = Array.from(document.getElementById("stages").tBodies[0].rows);
  const count = document.getElementById("count");
  const find = document.getElementById("find");
  const config = document.getElementById("config");
  const judgement = document.getElementById("judgement");

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

  document.getElementById("filter").hidden = false;
  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
  [find, config, judgement].forEach((control) => control.addEventListener("input", filter));
  filter();
})();
