/* The report's table of cases and its slice viewer. Data: the JSON block "case-data". */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("case-data").textContent);
  const byId = (id) => document.getElementById(id);
  const REFERENCE = "#56B4E9", PREDICTION = "#E69F00"; // Okabe and Ito: apart for all eyes
  const shown = { part: "", case: "", slice: 0 };
  const loaded = new Map();

  // --- the table ---

  const number = (digits) => (cell) => {
    const value = cell.getValue();
    return value === null || value === undefined ? "–" : value.toFixed(digits);
  };
  const signed = (digits) => (cell) => {
    const value = cell.getValue();
    if (value === null || value === undefined) return "–";
    return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  };
  // what is undefined comes last, however it is sorted
  const numeric = (a, b, rowA, rowB, column, direction) => {
    const missing = (value) => value === null || value === undefined;
    if (missing(a) && missing(b)) return 0;
    if (missing(a)) return direction === "asc" ? 1 : -1;
    if (missing(b)) return direction === "asc" ? -1 : 1;
    return a - b;
  };
  const limit = (wanted, value) => {
    const found = /^\s*(<=|>=|<|>|=)?\s*([\d.]+)\s*$/.exec(wanted);
    if (!found) return true;
    if (value === null || value === undefined) return false;
    const bound = parseFloat(found[2]);
    return { "<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound,
      "=": Math.abs(value - bound) < 5e-4 }[found[1] || "<="];
  };
  const choices = (field) => ["", ...new Set(data.rows.map((row) => row[field]))];
  const few = (field) => ({
    headerFilter: "list",
    headerFilterParams: { values: choices(field).map((value) => ({ value, label: value || "all" })) },
    headerFilterFunc: (wanted, value) => !wanted || value === wanted,
  });
  const columns = [
    { title: "Case", field: "case", headerFilter: "input", headerFilterPlaceholder: "find", widthGrow: 2 },
    { title: "Set", field: "part", ...few("part") },
    { title: "Structure", field: "structure", widthGrow: 2, ...few("structure") },
    ...data.metrics.map((metric) => ({
      title: metric.unit ? `${metric.name} (${metric.unit})` : metric.name,
      field: metric.name, hozAlign: "right", headerHozAlign: "right", sorter: numeric,
      formatter: number(metric.unit ? 2 : 3), headerFilter: "input",
      headerFilterPlaceholder: metric.unit ? "> 5" : "< 0.8", headerFilterFunc: limit,
    })),
    { title: "Dice there", field: "other", visible: false, hozAlign: "right", headerHozAlign: "right",
      sorter: numeric, formatter: number(3) },
    { title: "Difference", field: "difference", visible: false, hozAlign: "right",
      headerHozAlign: "right", sorter: numeric, formatter: signed(3) },
  ];
  const table = new Tabulator("#case-table", {
    data: data.rows, columns, layout: "fitColumns", height: Math.min(430, 110 + 33 * data.rows.length),
    initialSort: [{ column: "Dice", dir: "asc" }], selectableRows: 1, index: "id",
    placeholder: "No case fits the filters.",
    columnDefaults: { headerTooltip: true, minWidth: 84 },
  });
  const count = () => {
    const rows = table.getRows("active").length;
    byId("case-count").textContent = rows === data.rows.length
      ? `${rows} rows` : `${rows} of ${data.rows.length} rows`;
  };
  table.on("dataFiltered", () => setTimeout(count));
  table.on("rowClick", (event, row) => open(row.getData()));
  table.on("tableBuilt", () => {
    count();
    const worst = table.getRows("active")[0];
    if (worst) { worst.select(); open(worst.getData()); }
  });

  // --- runs side by side ---

  const runs = byId("other-run");
  if (runs) {
    runs.addEventListener("change", () => {
      const run = data.runs[runs.value];
      table.updateData(data.rows.map((row) => {
        const other = run ? run.dice[`${row.part}/${row.case}/${row.structure}`] ?? null : null;
        const both = other !== null && row.Dice !== null;
        return { id: row.id, other, difference: both ? row.Dice - other : null };
      })).then(() => {
        for (const field of ["other", "difference"]) table[run ? "showColumn" : "hideColumn"](field);
        table.redraw(true);
        const values = table.getData().map((row) => row.difference).filter((v) => v !== null);
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        const better = values.filter((value) => value > 0.0005).length;
        const worse = values.filter((value) => value < -0.0005).length;
        byId("run-summary").textContent = !run ? "" : !values.length
          ? "That run measured none of these cases."
          : `Dice of this run minus that of ${run.name}: mean ${mean < 0 ? "−" : "+"}` +
            `${Math.abs(mean).toFixed(4)}; better in ${better}, worse in ${worse} of ${values.length} rows.`;
      });
    });
  }

  // --- the viewer ---

  const canvas = byId("slice"), slider = byId("slice-number"), context = canvas.getContext("2d");
  const key = (part, name) => `${part}/${name}`;

  function picture(uri) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = reject;
      image.src = uri;
    });
  }

  async function load(part, name) {
    const id = key(part, name);
    if (!loaded.has(id)) {
      const slices = data.slices[id];
      const [grey, labels] = await Promise.all([picture(slices.grey), picture(slices.labels)]);
      const scratch = document.createElement("canvas");
      scratch.width = labels.width;
      scratch.height = labels.height;
      const pixels = scratch.getContext("2d", { willReadFrequently: true });
      pixels.drawImage(labels, 0, 0);
      loaded.set(id, { grey, labels: pixels.getImageData(0, 0, labels.width, labels.height).data });
      if (loaded.size > 40) loaded.delete(loaded.keys().next().value);
    }
    return loaded.get(id);
  }

  function open(row) {
    const slices = data.slices[key(row.part, row.case)];
    const scores = data.rows.filter((each) => each.case === row.case && each.part === row.part)
      .map((each) => `${each.structure} ${each.Dice === null ? "–" : each.Dice.toFixed(3)}`);
    byId("slice-title").textContent = `${row.case} (${row.part}): Dice ${scores.join(", ")}`;
    shown.part = row.part;
    shown.case = row.case;
    const missing = typeof slices === "string" || !slices;
    byId("slice-missing").hidden = !missing;
    byId("slice-panel").hidden = missing;
    if (missing) { byId("slice-missing").textContent = slices || "There are no pictures of this case."; return; }
    slider.max = slices.count - 1;
    go(largest(slices));
  }

  const largest = (slices) => Math.floor((slices.count - 1) / 2);

  function go(slice) {
    const slices = data.slices[key(shown.part, shown.case)];
    shown.slice = Math.max(0, Math.min(slices.count - 1, slice));
    slider.value = shown.slice;
    byId("slice-place").textContent = `${slices.numbers[shown.slice]} of ${slices.of}`;
    draw();
  }

  async function draw() {
    const { part, case: name, slice } = shown, slices = data.slices[key(part, name)];
    const { grey, labels } = await load(part, name);
    if (part !== shown.part || name !== shown.case || slice !== shown.slice) return;
    const scale = Math.max(1, Math.floor(624 / Math.max(slices.width, slices.height)));
    canvas.width = slices.width * scale;
    canvas.height = slices.height * scale;
    context.imageSmoothingEnabled = true;
    context.drawImage(grey, 0, slice * slices.height, slices.width, slices.height,
      0, 0, canvas.width, canvas.height);
    if (byId("show-reference").checked) outline(labels, slices, slice, 0, REFERENCE, scale, []);
    if (byId("show-prediction").checked) outline(labels, slices, slice, 1, PREDICTION, scale, [5, 4]);
    canvas.dataset.slice = `${part}/${name}/${slice}`;
  }

  // the edges between pixels of different labels
  function outline(labels, slices, slice, channel, colour, scale, dashes) {
    const { width, height } = slices, top = slice * height;
    const at = (x, y) => x < 0 || y < 0 || x >= width || y >= height
      ? 0 : labels[4 * ((top + y) * width + x) + channel];
    context.beginPath();
    for (let y = 0; y <= height; y++) {
      for (let x = 0; x <= width; x++) {
        if (at(x, y) !== at(x - 1, y)) { context.moveTo(x * scale, y * scale); context.lineTo(x * scale, (y + 1) * scale); }
        if (at(x, y) !== at(x, y - 1)) { context.moveTo(x * scale, y * scale); context.lineTo((x + 1) * scale, y * scale); }
      }
    }
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.setLineDash(dashes);
    context.stroke();
  }

  slider.addEventListener("input", () => go(Number(slider.value)));
  for (const id of ["show-reference", "show-prediction"]) byId(id).addEventListener("change", draw);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    go(shown.slice + (event.deltaY > 0 ? 1 : -1));
  }, { passive: false });

  function step(by) {
    const rows = table.getRows("active");
    const here = rows.findIndex((row) => row.isSelected());
    const next = rows[Math.max(0, Math.min(rows.length - 1, here + by))];
    if (!next) return;
    table.deselectRow();
    next.select();
    next.scrollTo("nearest", false).catch(() => {});
    open(next.getData());
  }
  byId("case-before").addEventListener("click", () => step(-1));
  byId("case-after").addEventListener("click", () => step(1));
  byId("viewer").addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: () => go(shown.slice - 1), ArrowRight: () => go(shown.slice + 1),
      ArrowUp: () => step(-1), ArrowDown: () => step(1) };
    if (event.target.type === "range" || !moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });
})();
