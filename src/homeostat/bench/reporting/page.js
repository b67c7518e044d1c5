(() => {
  "use strict";
  const said = document.getElementById("said");
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell === undefined ? "" : cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent.trim();
  };
  const sort = (table, head, column) => {
    const numbers = head.dataset.sort === "number";
    const before = head.getAttribute("aria-sort");
    const down = before === "none" ? numbers && head.dataset.first !== "up" : before === "ascending";
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const letters = new Intl.Collator(undefined, { numeric: true });
    const known = row => valueOf(row, column) !== "";
    rows.sort((a, b) => {
      if (known(a) !== known(b)) return known(a) ? -1 : 1;
      if (!known(a)) return 0;
      const x = valueOf(a, column), y = valueOf(b, column);
      const order = numbers ? Number(x) - Number(y) : letters.compare(x, y);
      return down ? -order : order;
    });
    body.append(...rows);
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    said.textContent = `Sorted by ${head.textContent.trim()}, ${down ? "descending" : "ascending"}`;
  };
  for (const table of document.querySelectorAll("table.sorts")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      if (!head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, head, column));
    });
  }
  const unpack = async text => {
    const bytes = Uint8Array.from(atob(text.trim()), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).blob();
  };
  for (const button of document.querySelectorAll("button[data-file]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        const whole = await unpack(document.getElementById(button.dataset.file).textContent);
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([whole], { type: "text/csv;charset=utf-8" }));
        link.download = button.dataset.name;
        document.body.append(link);
        link.click();
        link.remove();
        setTimeout(() => URL.revokeObjectURL(link.href), 60000);
        said.textContent = `${button.dataset.name} is ready`;
      } catch (problem) {
        said.textContent = `This browser cannot unpack the file: ${problem.message}`;
        said.classList.remove("hidden");
      }
    });
  }
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
})();
