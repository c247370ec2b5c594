"use strict";
/* Sorting of tables, filtering of the stage table, the way from a drawing to a row. Without this script the tables are
   simply there, complete, and links in drawings lead to their rows all the same. */
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

  /* A row that the filter hides could not be gone to. */
  function reach() {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!row || row.localName !== "tr") return;
    if (row.hidden) {
      find.value = "";
      judgement.value = "*";
      if (row.dataset.config) config.value = row.dataset.config;
      if (config.selectedIndex < 0) config.value = "*";
      filter();
    }
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "center" });
  }
  window.addEventListener("hashchange", reach);
  /* The same link twice changes no address. */
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) reach();
  });
  reach();

  /* One stop for the tabulator key, arrow keys from stage to stage. */
  const spots = Array.from(document.querySelectorAll("#plot .spot"));
  spots.forEach((spot, place) => spot.addEventListener("keydown", (event) => {
    const next = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: spots.length - 1 }[event.key];
    if (next === undefined || !spots[next]) return;
    event.preventDefault();
    spots[next].focus();
  }));

  const tree = document.getElementById("tree");
  const inner = tree ? Array.from(tree.querySelectorAll("details")) : [];
  if (inner.length) {
    const tools = document.createElement("div");
    tools.className = "tools";
    [["open all", true], ["close all", false]].forEach(([text, open]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => inner.forEach((each) => { each.open = open; }));
      tools.append(button);
    });
    tree.before(tools);
  }
})();
