"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const sort = (index, ascending) => {
    const keyOf = (row) => row.cells[index].dataset.key;
    const isNumber = [...body.rows].every((row) => keyOf(row) === "" || !Number.isNaN(Number(keyOf(row))));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [keyOf(a), keyOf(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known goes last, whichever way
      const order = isNumber ? Number(x) - Number(y) : x.localeCompare(y);
      return ascending ? order : -order;
    });
    body.append(...rows);
    headers.forEach((header) => header.removeAttribute("aria-sort"));
    headers[index].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  };
  headers.forEach((header, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(index, header.getAttribute("aria-sort") !== "ascending"));
    header.append(button);
  });
}
for (const form of document.querySelectorAll("form.filter")) {
  const rows = [...document.getElementById(form.dataset.for).tBodies[0].rows];
  const [name, kind] = [form.querySelector("input"), form.querySelector("select")];
  const filter = () => {
    for (const row of rows) {
      const named = row.dataset.name.toLowerCase().includes(name.value.trim().toLowerCase());
      row.hidden = !(named && (kind.value === "" || row.dataset.kind === kind.value));
    }
    form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} models`;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
}
