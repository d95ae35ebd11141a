"use strict";
// The sliders: counts come from the histogram by both scores, verdicts of the examples from their bins.
(() => {
  const block = document.getElementById("data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const axes = ["itm", "itc"];
  const state = { itm: data.itm.at, itc: data.itc.at };
  const slider = (axis) => document.getElementById("slider-" + axis);
  const number = (axis) => data[axis].edges[state[axis]].toFixed(3).replace(/0$/, "");
  const shown = (axis) => (state[axis] === 0 && !data.either ? "any" : number(axis));

  const passes = (i, j) =>
    data.either
      ? i >= state.itm || j >= state.itc
      : (state.itm === 0 || i >= state.itm) && (state.itc === 0 || j >= state.itc);

  const nearest = (axis, value) => {
    const edges = data[axis].edges;
    let best = 0;
    edges.forEach((edge, k) => {
      if (Math.abs(edge - value) < Math.abs(edges[best] - value)) best = k;
    });
    return best;
  };

  function showCounts() {
    for (const [origin, cells] of Object.entries(data.cells)) {
      const out = document.getElementById("live-" + origin);
      if (!out) continue;
      let kept = 0;
      for (let k = 0; k < cells.length; k += 3) if (passes(cells[k], cells[k + 1])) kept += cells[k + 2];
      const change = kept - Number(out.dataset.run);
      out.textContent = kept.toLocaleString("en-US");
      document.getElementById("change-" + origin).textContent =
        change === 0 ? "as in the run" : (change > 0 ? "+" : "−") + Math.abs(change).toLocaleString("en-US");
    }
  }

  function showAxis(axis) {
    const edges = data[axis].edges;
    const low = edges[0];
    const place = (edges[state[axis]] - low) / (edges[edges.length - 1] - low);
    const figure = document.getElementById("chart-" + axis);
    figure.querySelectorAll(".veil").forEach((veil) => veil.setAttribute("width", 1000 * place));
    figure.querySelectorAll(".cut").forEach((cut) => {
      cut.setAttribute("x1", 1000 * place);
      cut.setAttribute("x2", 1000 * place);
    });
    slider(axis).value = edges[state[axis]];
    slider(axis).setAttribute("aria-valuetext", shown(axis));
    document.getElementById("at-" + axis).textContent = shown(axis);
  }

  function showExamples() {
    for (const card of document.querySelectorAll(".card")) {
      const verdicts = new Set();
      for (const line of card.querySelectorAll(".text")) {
        if (line.dataset.judged) {
          const kept = passes(Number(line.dataset.i), Number(line.dataset.j));
          const changed = kept !== (line.dataset.run === "kept");
          line.classList.toggle("kept", kept);
          line.classList.toggle("rejected", !kept);
          line.classList.toggle("changed", changed);
          line.querySelector(".verdict").textContent = kept ? "kept" : changed ? "rejected" : line.dataset.verdict;
        }
        verdicts.add(line.dataset.origin + (line.classList.contains("kept") ? "-kept" : "-rejected"));
      }
      card.dataset.verdicts = [...verdicts].join(" ");
    }
  }

  function show() {
    axes.forEach(showAxis);
    showCounts();
    showExamples();
  }

  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    let found = false;
    for (const axis of axes) {
      const value = Number.parseFloat(given.get(axis));
      if (Number.isFinite(value)) {
        state[axis] = nearest(axis, value);
        found = true;
      }
    }
    if (found) show();
  }

  for (const axis of axes) {
    slider(axis).addEventListener("input", () => {
      state[axis] = nearest(axis, Number(slider(axis).value));
      show();
      history.replaceState(null, "", "#itm=" + number("itm") + "&itc=" + number("itc"));
    });
  }
  document.getElementById("reset").addEventListener("click", () => {
    history.replaceState(null, "", "#");
    location.reload();
  });
  addEventListener("hashchange", readHash);
  document.documentElement.classList.add("live");
  readHash();
})();
