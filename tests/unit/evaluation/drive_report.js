// Runs in a copy of the report: what a person does, and what the page shows then.
window.addEventListener("load", async () => {
  const result = {};
  const pause = () => new Promise(done => setTimeout(done, 300));
  const $ = id => document.getElementById(id);
  const cells = field => [...document.querySelectorAll(`.tabulator-row [tabulator-field=${field}]`)]
    .map(cell => cell.textContent);
  const press = key => $("viewer").dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const ink = colour => {
    const {data} = $("slice").getContext("2d").getImageData(0, 0, $("slice").width, $("slice").height);
    let found = 0;
    for (let i = 0; i < data.length; i += 4)
      if (Math.abs(data[i] - colour[0]) + Math.abs(data[i + 1] - colour[1]) +
          Math.abs(data[i + 2] - colour[2]) < 40) found += 1;
    return found;
  };
  const BLUE = [0x56, 0xb4, 0xe9], ORANGE = [0xe6, 0x9f, 0x00];
  try {
    await pause();
    result.sorted = cells("Dice");
    result.opened = $("slice").dataset.slice;
    result.title = $("slice-title").textContent;
    result.place = $("slice-place").textContent;
    result.blue = ink(BLUE);
    result.orange = ink(ORANGE);
    $("show-prediction").click(); await pause();
    result.hidden = ink(ORANGE);
    $("show-prediction").click(); await pause();
    press("ArrowRight"); await pause();
    result.after = $("slice").dataset.slice;
    $("slice").dispatchEvent(new WheelEvent("wheel", {deltaY: -1, cancelable: true}));
    $("slice").dispatchEvent(new WheelEvent("wheel", {deltaY: -1, cancelable: true})); await pause();
    result.wheeled = $("slice").dataset.slice;
    press("ArrowDown"); await pause();
    result.next = $("slice").dataset.slice;
    document.querySelector("[tabulator-field=Dice] .tabulator-col-title").click(); await pause();
    result.resorted = cells("Dice");
    const filter = document.querySelector(".tabulator-col[tabulator-field=case] input");
    filter.value = "006";
    filter.dispatchEvent(new KeyboardEvent("keyup", {key: "6", bubbles: true}));
    filter.dispatchEvent(new Event("search", {bubbles: true})); await pause(); await pause();
    result.filtered = cells("case");
    result.count = $("case-count").textContent;
    const runs = $("other-run");
    if (runs) {
      runs.value = "0";
      runs.dispatchEvent(new Event("change")); await pause();
      result.summary = $("run-summary").textContent;
      result.difference = cells("difference");
      result.runs = [...runs.options].map(option => option.textContent);
    }
  } catch (error) { result.error = String(error.stack || error); }
  document.body.innerHTML = "<pre id='probe'></pre>";
  document.getElementById("probe").textContent = JSON.stringify(result);
});
