// Click on a heading to sort its table: columns of values by their leading number (cells without one last), names by text.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const number = head.classList.contains("number");
      const lines = [...body.rows].map((row) => [row.cells[place].textContent, row]);
      lines.sort(([a], [b]) => {
        const [x, y] = [parseFloat(a), parseFloat(b)];
        if (number && Number.isNaN(x + y)) return Number.isNaN(x) - Number.isNaN(y);
        const order = number ? x - y : a.localeCompare(b, undefined, { numeric: true });
        return up ? order : -order;
      });
      body.append(...lines.map(([, row]) => row));
    });
  });
}
