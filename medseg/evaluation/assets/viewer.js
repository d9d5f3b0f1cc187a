"use strict";
/* The report's table of cases and its viewer of slices. Data stands in JSON blocks of the page:
   "study" (see study.py) and one "slices-N" a case (see slices.py), read when the case is opened. */

(() => {
  const element = id => document.getElementById(id);
  const study = JSON.parse(element("study").textContent);
  element("cases-live").hidden = false;

  const metrics = study.metrics.map(metric => metric.name);
  const units = Object.fromEntries(study.metrics.map(metric => [metric.name, metric.unit]));
  const ALL = study.structures.length;
  const LAYERS = [
    { name: "reference", title: "reference", colour: "#56B4E9", dash: [] },
    { name: "prediction", title: "prediction", colour: "#E69F00", dash: [7, 4] },
  ];
  const state = { part: "", structure: ALL === 1 ? 0 : ALL, search: "", most: 1, other: 0, row: null };

  const shown = (value, digits) =>
    value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
  const digits = metric => (units[metric] ? 2 : 3);
  const make = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // ---- values ----

  /** A metric of a case in a run: of the chosen structure, or the mean of those that have one. */
  function valueOf(entry, run, index) {
    const own = entry.values[run];
    if (!own) return null;
    if (state.structure < ALL) return own[state.structure][index];
    const defined = own.map(values => values[index]).filter(value => value !== null);
    return defined.length ? defined.reduce((sum, value) => sum + value, 0) / defined.length : null;
  }

  function rows() {
    return study.cases.map((entry, id) => {
      const row = { id, part: entry.part, case: entry.case };
      metrics.forEach((metric, index) => {
        const here = valueOf(entry, 0, index);
        const there = state.other ? valueOf(entry, state.other, index) : null;
        row[metric] = here;
        row[`${metric} other`] = there;
        row[`${metric} difference`] = here === null || there === null ? null : here - there;
      });
      return row;
    });
  }

  // ---- table ----

  const heading = metric => units[metric] ? `${metric} (${units[metric]})` : metric;
  const number = (title, field, metric, more = {}) => ({
    title, field, hozAlign: "right", headerHozAlign: "right", sorter: "number", minWidth: title.length > 6 ? 106 : 62,
    sorterParams: { alignEmptyValues: "bottom" },
    formatter: cell => shown(cell.getValue(), digits(metric)), ...more,
  });

  function bar(cell) {
    const value = cell.getValue();
    if (value !== null) {
      const share = `${Math.round(value * 100)}%`;
      cell.getElement().style.backgroundImage =
        `linear-gradient(90deg, var(--bar) ${share}, transparent ${share})`;
    }
    return shown(value, 3);
  }

  function change(metric) {
    const better = units[metric] ? -1 : 1; // less is better where there is a unit
    return cell => {
      const value = cell.getValue();
      if (value === null) return "–";
      const text = shown(value, digits(metric));
      const sign = value > 0 ? "+" : "";
      const good = value * better > 0;
      const mark = Number(value.toFixed(digits(metric))) === 0 ? "" : good ? "▲ " : "▼ ";
      cell.getElement().classList.toggle("worse", mark === "▼ ");
      cell.getElement().classList.toggle("better", mark === "▲ ");
      return mark + sign + text;
    };
  }

  function columns() {
    const several = new Set(study.cases.map(entry => entry.part)).size > 1;
    const name = { title: "Case", field: "case", sorter: "alphanum", minWidth: 110, widthGrow: 1.5,
      cssClass: "case", tooltip: true };
    if (state.other)
      return [name, ...["Dice", "HD95"].map(metric => ({
        title: heading(metric),
        columns: [
          number("here", metric, metric),
          number("other", `${metric} other`, metric),
          number("change", `${metric} difference`, metric, { formatter: change(metric), minWidth: 88 }),
        ],
      }))];
    return [name, ...(several ? [{ title: "Set", field: "part", minWidth: 92 }] : []),
      ...metrics.map(metric => number(heading(metric), metric, metric,
        metric === "Dice" ? { formatter: bar, cssClass: "bar", minWidth: 84 } : {}))];
  }

  const table = new Tabulator(element("case-table"), {
    data: rows(), columns: columns(), layout: "fitColumns", maxHeight: 620, index: "id",
    initialSort: [{ column: "Dice", dir: "asc" }], columnDefaults: { resizable: false },
    printAsHtml: true, printRowRange: "active", placeholder: "No case fits the filters.",
  });
  let ready = false;

  function filtered(row) {
    const low = state.search.toLowerCase();
    return (!state.part || row.part === state.part) && row.case.toLowerCase().includes(low)
      && (state.most >= 1 || (row.Dice !== null && row.Dice <= state.most));
  }

  function count(active) {
    const all = study.cases.length;
    element("case-count").textContent =
      active.length === all ? `${all} cases` : `${active.length} of ${all} cases`;
    if (!state.other) {
      element("comparison").textContent = "";
      return;
    }
    const both = active.map(row => row.getData()).filter(row => row["Dice difference"] !== null);
    const mean = field => both.reduce((sum, row) => sum + row[field], 0) / both.length;
    const differing = both.map(row => Math.round(row["Dice difference"] * 1000));
    const times = test => differing.filter(test).length;
    element("comparison").textContent = both.length
      ? `Dice over ${both.length} cases of both: mean ${shown(mean("Dice"), 3)} here, `
        + `${shown(mean("Dice other"), 3)} in ${study.runs[state.other]}; better here in `
        + `${times(d => d > 0)}, equal in ${times(d => d === 0)}, worse in ${times(d => d < 0)}.`
      : `None of these cases has a Dice in both this report and ${study.runs[state.other]}.`;
  }

  table.on("dataFiltered", (_filters, active) => count(active));
  table.on("rowClick", (_event, row) => open(row));
  table.on("renderComplete", mark);
  table.on("tableBuilt", () => {
    ready = true;
    table.setFilter(filtered);
    openFirst();
  });

  function openFirst() {
    const first = table.getRows("active")[0];
    if (first) open(first);
  }

  function mark() {
    for (const row of table.getRows("visible")) {
      const chosen = state.row !== null && row.getData().id === state.row;
      row.getElement().classList.toggle("chosen", chosen);
      row.getElement().setAttribute("aria-selected", chosen);
    }
  }

  async function rebuild() {
    if (!ready) return;
    table.setColumns(columns());
    await table.replaceData(rows());
    table.setSort(state.other ? "Dice difference" : "Dice", "asc");
    table.setFilter(filtered);
    draw();
  }

  /** Opens the case so many rows below the present one, in the order of the table. */
  function step(by) {
    const active = table.getRows("active");
    const at = active.findIndex(row => row.getData().id === state.row);
    const next = active[at < 0 ? 0 : at + by];
    if (!next) return;
    open(next);
    table.scrollToRow(next, "nearest", false).catch(() => {});
  }

  // ---- slices ----

  const view = { case: null, slices: null, labels: {}, image: null, at: 0 };

  async function inflated(text) {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function open(row) {
    const id = row.getData().id;
    const entry = study.cases[id];
    state.row = id;
    mark();
    Object.assign(view, { case: entry, slices: null, labels: {}, image: null, at: 0 });
    const block = element(`slices-${id}`);
    if (!block || typeof DecompressionStream === "undefined") {
      draw(block ? "This browser is too old to show slices: use one of 2023 or later." : entry.missing);
      return;
    }
    try {
      const slices = JSON.parse(block.textContent);
      const image = new Image();
      image.src = slices.image;
      const names = Object.keys(slices.labels);
      const maps = await Promise.all(names.map(name => inflated(slices.labels[name])));
      await image.decode();
      if (state.row !== id) return; // another one was opened meanwhile
      Object.assign(view, { slices, image });
      names.forEach((name, index) => { view.labels[name] = maps[index]; });
      view.at = slices.wrong.indexOf(Math.max(...slices.wrong));
      if (!slices.wrong[view.at]) view.at = slices.slices.length >> 1;
      draw();
    } catch (error) {
      if (state.row === id) draw(`The slices of ${entry.case} cannot be shown: ${error.message}`);
    }
  }

  function go(slice) {
    if (!view.slices) return;
    view.at = Math.max(0, Math.min(view.slices.slices.length - 1, slice));
    draw();
  }

  /** Outlines of a mask as closed lines through the middles of the pixels' edges. */
  function outlines(inside, width, height, across, down) {
    const line = width + 1;
    const next = new Map(); // corner to the corners that edges lead to, the mask on their right
    const edge = (from, to) => next.has(from) ? next.get(from).push(to) : next.set(from, [to]);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        if (!inside(x, y)) continue;
        const corner = y * line + x;
        if (y === 0 || !inside(x, y - 1)) edge(corner, corner + 1);
        if (x === width - 1 || !inside(x + 1, y)) edge(corner + 1, corner + line + 1);
        if (y === height - 1 || !inside(x, y + 1)) edge(corner + line + 1, corner + line);
        if (x === 0 || !inside(x - 1, y)) edge(corner + line, corner);
      }
    const path = new Path2D();
    for (const [start, ends] of next)
      while (ends.length) {
        let from = start;
        let begun = false;
        do {
          const to = next.get(from).pop();
          const x = ((from % line) + (to % line)) / 2 * across;
          const y = (Math.floor(from / line) + Math.floor(to / line)) / 2 * down;
          if (begun) path.lineTo(x, y); else path.moveTo(x, y);
          begun = true;
          from = to;
        } while (from !== start);
        path.closePath();
      }
    return path;
  }

  function outline(context, labels, layer, across, down) {
    const { width, height } = view.slices;
    const start = view.at * width * height;
    const slice = labels.subarray(start, start + width * height);
    const present = new Set(slice);
    study.structures.forEach((structure, index) => {
      if (state.structure < ALL && state.structure !== index) return;
      const values = new Set(structure.values.filter(value => present.has(value)));
      if (!values.size) return;
      const path = outlines((x, y) => values.has(slice[y * width + x]), width, height, across, down);
      context.setLineDash(layer.dash);
      context.lineWidth = 3.5;
      context.strokeStyle = "rgba(0, 0, 0, .5)"; // stands out on bright images too
      context.stroke(path);
      context.lineWidth = 2;
      context.strokeStyle = layer.colour;
      context.stroke(path);
    });
  }

  function panel(run) {
    const { width, height, pitch, aspect } = view.slices;
    const canvas = make("canvas");
    const caption = make("figcaption", {
      textContent: state.other ? `${study.runs[run]}: ${numbers(run)}` : numbers(run),
    });
    const figure = make("figure", {}, canvas, caption);
    element("panels").append(figure);
    const room = { width: figure.clientWidth, height: Math.max(260, Math.min(520, innerHeight * 0.6)) };
    const scale = Math.min(room.width / width, room.height / (height * aspect));
    const size = { width: width * scale, height: height * aspect * scale };
    const dense = devicePixelRatio || 1;
    canvas.width = Math.round(size.width * dense);
    canvas.height = Math.round(size.height * dense);
    canvas.style.width = `${size.width}px`;
    canvas.setAttribute("role", "img");
    const number = view.slices.slices[view.at];
    canvas.setAttribute("aria-label",
      `${view.case.case}, axial slice ${number} of ${view.slices.total}, with outlines`);
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    context.filter = `brightness(${element("brightness").value}%) contrast(${element("contrast").value}%)`;
    context.imageSmoothingQuality = "high";
    context.drawImage(view.image, 0, view.at * pitch, width, height, 0, 0, size.width, size.height);
    context.filter = "none";
    context.lineJoin = "round";
    const labels = { reference: view.labels.reference, prediction: view.labels[run] };
    for (const layer of LAYERS)
      if (element(`layer-${layer.name}`).checked && labels[layer.name])
        outline(context, labels[layer.name], layer, size.width / width, size.height / height);
    if (!labels.prediction)
      caption.append(make("em", { textContent: " Its prediction is not there." }));
    letters(context, size);
  }

  function letters(context, { width, height }) {
    context.setLineDash([]);
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0, 0, 0, .7)";
    context.fillStyle = "#fff";
    for (const [letter, x, y] of [
      ["R", 10, height / 2], ["L", width - 10, height / 2], ["A", width / 2, 10], ["P", width / 2, height - 10],
    ]) {
      context.strokeText(letter, x, y);
      context.fillText(letter, x, y);
    }
  }

  function numbers(run) {
    return ["Dice", "HD95"].map(metric => {
      const value = shown(valueOf(view.case, run, metrics.indexOf(metric)), digits(metric));
      return `${metric} ${value}${units[metric] ? ` ${units[metric]}` : ""}`;
    }).join(" · ");
  }

  function draw(message = "") {
    if (!view.case) return;
    const { slices } = view;
    element("viewer-case").textContent = view.case.case;
    element("viewer-part").textContent = view.case.part;
    element("viewer-message").textContent = message;
    element("viewer-message").hidden = !message;
    element("slice-controls").hidden = !slices;
    element("panels").replaceChildren();
    if (!slices) return;
    const runs = state.other && view.case.values[state.other] ? [0, state.other] : [0];
    element("panels").classList.toggle("two", runs.length > 1);
    runs.forEach(panel);
    const slider = element("slice");
    slider.max = slices.slices.length - 1;
    slider.value = view.at;
    const text = `${slices.slices[view.at]} of ${slices.total}`;
    slider.setAttribute("aria-valuetext", `slice ${text}`);
    element("slice-number").textContent = text;
    bars(slices);
  }

  /** How much of each slice is wrong, above the slider. */
  function bars({ wrong, slices }) {
    const most = Math.max(...wrong, 1);
    element("bars").replaceChildren(...wrong.map((area, index) => {
      const one = make("span", {
        title: `Slice ${slices[index]}: ${area} mm² differ`,
        className: index === view.at ? "here" : "",
        onclick: () => go(index),
      }, make("i"));
      one.firstChild.style.height = `${Math.round(area / most * 100)}%`;
      return one;
    }));
  }

  // ---- controls ----

  const choose = (id, options, act) => {
    const select = element(id);
    select.append(...options.map(([value, text]) => make("option", { value, textContent: text })));
    select.addEventListener("change", () => act(select.value));
    select.closest("label").hidden = options.length < 2;
    return select;
  };
  const parts = [...new Set(study.cases.map(entry => entry.part))];
  choose("filter-part", [["", "all"], ...parts.map(part => [part, part])].slice(parts.length > 1 ? 0 : 1),
    value => { state.part = value; table.refreshFilter(); });
  choose("filter-structure",
    [...(ALL > 1 ? [[ALL, "mean of all"]] : []), ...study.structures.map((one, index) => [index, one.name])],
    value => { state.structure = Number(value); rebuild(); });
  choose("filter-run", [[0, "no other"], ...study.runs.slice(1).map((name, index) => [index + 1, name])],
    value => { state.other = Number(value); rebuild().then(openFirst); });
  element("filter-case").addEventListener("input", event => {
    state.search = event.target.value.trim();
    table.refreshFilter();
  });
  element("filter-dice").addEventListener("input", event => {
    const value = event.target.valueAsNumber;
    state.most = Number.isFinite(value) ? value : 1;
    table.refreshFilter();
  });
  element("previous-case").addEventListener("click", () => step(-1));
  element("next-case").addEventListener("click", () => step(1));
  element("slice").addEventListener("input", event => go(Number(event.target.value)));
  for (const id of ["layer-reference", "layer-prediction", "brightness", "contrast"])
    element(id).addEventListener("input", () => draw());
  element("panels").addEventListener("wheel", event => {
    event.preventDefault();
    go(view.at + Math.sign(event.deltaY));
  }, { passive: false });
  element("viewer").addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
    const act = {
      ArrowUp: () => go(view.at + 1), ArrowRight: () => go(view.at + 1),
      ArrowDown: () => go(view.at - 1), ArrowLeft: () => go(view.at - 1),
      Home: () => go(0), End: () => go(Infinity), PageUp: () => step(-1), PageDown: () => step(1),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  element("case-table").addEventListener("keydown", event => {
    const act = { ArrowDown: () => step(1), ArrowUp: () => step(-1) }[event.key];
    if (!act || event.target.closest(".tabulator-header")) return;
    event.preventDefault();
    act();
  });
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => draw());
  });
})();
