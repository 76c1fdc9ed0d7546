"use strict";
/* Brings the report to life: charts, sorted and filtered tables, confusion matrices, gallery.
   Texts of the data only ever become text nodes; nothing here parses HTML. */
(() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const root = document.documentElement;
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const option = (value, text) => make("option", { value, textContent: text });

  // ---------------------------------------------------------------- theme
  const charts = new Set();
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const redraw = () => charts.forEach((chart) => chart.redraw(false, true));
  try { root.dataset.theme = localStorage.getItem("d2ext-theme") || ""; } catch (error) { /* file:// */ }
  if (!root.dataset.theme) delete root.dataset.theme;
  $("#theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("d2ext-theme", root.dataset.theme); } catch (error) { /* file:// */ }
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // ---------------------------------------------------------------- charts
  const EXTRA = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
  const colorOf = (series, index) => {
    if (series.grey) return () => css("--soft");
    const color = series.run === undefined ? EXTRA[index % EXTRA.length] : data.colors[series.run];
    return color === "#000000" ? () => css("--fg") : color;
  };
  const round = (value) => value == null ? "–" : String(+Number(value).toPrecision(4));

  function build(spec, holder) {
    const axis = (label) => ({
      label, labelSize: label ? 18 : 0, labelFont: "11px system-ui", font: "11px system-ui", gap: 3,
      stroke: () => css("--soft"), grid: { stroke: () => css("--line"), width: 1 },
      ticks: { stroke: () => css("--line"), width: 1 },
      values: (u, splits) => splits.map((v) => v == null ? "" : String(+v.toPrecision(5))),
    });
    const range = spec.range || [null, null];
    const options = {
      width: Math.max(holder.clientWidth, 200), height: 220,
      scales: {
        x: { time: false, distr: spec.log ? 3 : 1 },
        y: { range: (u, low, high) => {
          if (low == null) return [0, 1];
          const space = (high - low || Math.abs(high) || 1) * 0.06;
          return [range[0] ?? low - space, range[1] ?? high + space];
        } },
      },
      cursor: { points: { size: 6 }, drag: { x: true, y: false } },
      axes: [{ ...axis(spec.x_label), size: 34 }, { ...axis(spec.y_label), size: 52 }],
      series: [{ label: spec.x_label, value: (u, value) => round(value) }].concat(
        spec.series.map((series, index) => ({
          label: series.name, stroke: colorOf(series, index), width: series.thin ? 1 : 1.6,
          dash: series.dash ? [6, 4] : undefined, spanGaps: true, show: !series.hidden,
          points: { show: Boolean(series.points) || series.y.filter((v) => v != null).length < 3 },
          value: (u, value) => round(value),
        }))),
    };
    if (series_empty(spec)) return;
    const chart = new uPlot(options, [spec.x, ...spec.series.map((s) => s.y)], holder);
    charts.add(chart);
    holder.uplot = chart;
    for (const label of $$(".u-legend .u-series th", holder).slice(1)) {
      label.tabIndex = 0;
      label.setAttribute("role", "button");
      label.title = "Show or hide this line";
      label.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        label.click();
      });
    }
    new ResizeObserver(() => {
      const width = Math.max(holder.clientWidth, 200);
      if (Math.abs(width - chart.width) > 1) chart.setSize({ width, height: 220 });
    }).observe(holder);
  }
  const series_empty = (spec) => !spec.series.length || !spec.x.length;

  const waiting = new Map();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) now(entry.target);
  }, { rootMargin: "300px" });
  function now(figure) {
    const spec = waiting.get(figure);
    if (!spec) return;
    waiting.delete(figure);
    observer.unobserve(figure);
    build(spec, $(".plot", figure));
  }
  function addChart(spec, place) {
    const figure = make("figure", {},
      make("p", { className: "chart-title", textContent: spec.title, title: "Drag to zoom, double-click to zoom out" }),
      make("div", { className: "plot" }));
    figure.dataset.name = spec.title.toLowerCase();
    figure.style.minHeight = "250px";
    place.append(figure);
    waiting.set(figure, spec);
    observer.observe(figure);
    return figure;
  }
  function clear(place) {
    for (const figure of $$("figure", place)) {
      waiting.delete(figure);
      const chart = $(".plot", figure).uplot;
      if (chart) { charts.delete(chart); chart.destroy(); }
    }
    place.replaceChildren();
  }
  for (const place of $$(".charts[data-group]")) {
    const group = place.dataset.group;
    const specs = group === "balance" ? data.balance : data.training[group].charts;
    specs.forEach((spec) => addChart(spec, place));
  }
  if (data.data) data.data.charts.forEach((spec) => addChart(spec, $(".data-charts")));
  const curveFilter = $("#curve-filter");
  if (curveFilter) curveFilter.addEventListener("input", () => {
    const text = curveFilter.value.toLowerCase();
    for (const figure of $$("#training .charts figure")) figure.hidden = !figure.dataset.name.includes(text);
    if (text) $$("#training details").forEach((d) => { d.open = Boolean($("figure:not([hidden])", d)); });
  });
  addEventListener("beforeprint", () => {
    $$("details").forEach((d) => { d.open = true; });
    [...waiting.keys()].forEach(now);
  });

  // ---------------------------------------------------------------- tables
  const value = (row, column) => row.cells[column].textContent.trim();
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" });
      button.append(...head.childNodes);
      if (!button.textContent.trim()) button.setAttribute("aria-label", "sort");
      head.append(button);
      button.addEventListener("click", () => {
        const first = column === 0 ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        const way = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way);
        const sign = way === "ascending" ? 1 : -1;
        const rows = [...table.tBodies[0].rows];
        const number = (row) => { const v = parseFloat(value(row, column)); return isNaN(v) ? null : v; };
        const numeric = rows.some((row) => number(row) !== null);
        rows.sort((a, b) => {
          if (!numeric) return sign * value(a, column).localeCompare(value(b, column));
          const [x, y] = [number(a), number(b)];
          if (x === null || y === null) return (x === null) - (y === null);  // gaps come last
          return sign * (x - y);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
  $$("table.sortable").forEach(sortable);
  for (const input of $$("input.filter")) {
    input.addEventListener("input", () => {
      const text = input.value.toLowerCase();
      for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
        row.hidden = ![...row.cells].filter((c) => c.classList.contains("text"))
          .some((c) => c.textContent.toLowerCase().includes(text));
      }
    });
  }
  // Texts on dark blue are white by day, those on bright blue black by night.
  function shade(cell, share) {
    cell.classList.toggle("half", share > 0.5);
    cell.classList.toggle("full", share > 0.9);
  }
  for (const table of $$("table.together")) {
    for (const cell of $$("td", table)) shade(cell, parseFloat(cell.style.getPropertyValue("--v")));
  }

  // ---------------------------------------------------------------- evaluation
  const known = (set) => set.runs.map((run, k) => run ? k : -1).filter((k) => k >= 0);
  const steps = (n) => Array.from({ length: n }, (_, k) => k / (n - 1));
  const valid = (row) => row.map((v) => v < 0 ? null : v);
  function meanOf(rows) {
    const good = rows.filter((row) => row && row[0] >= 0);
    if (!good.length) return steps(101).map(() => null);
    return good[0].map((_, k) => good.reduce((sum, row) => sum + row[k], 0) / good.length);
  }

  function curveSpecs(set, chosen) {
    const runs = known(set);
    const name = (k) => data.runs[k];
    const scores = set.runs[runs[0]].curves.scores;
    const all = set.classes.length;
    if (chosen === "compare") {
      const run = set.runs[runs[0]];
      const classes = set.classes.map((_, c) => c).filter((c) => run.pr[c] && run.pr[c][0] >= 0).slice(0, 12);
      const lines = (rows) => classes.map((c, k) => ({ name: set.classes[c], y: rows[c], dash: k >= 6 }));
      return [
        { title: "Precision by recall, IoU 0.5", x: steps(101), x_label: "recall", y_label: "precision", series: lines(run.pr), range: [0, 1.02] },
        { title: "F1 by score", x: scores, x_label: "score", y_label: "F1", series: lines(run.curves.f1), range: [0, 1.02] },
        { title: "Recall by score", x: scores, x_label: "score", y_label: "recall", series: lines(run.curves.recall), range: [0, 1.02] },
      ];
    }
    const c = chosen === "all" ? all : Number(chosen);
    const pr = (run) => chosen === "all" ? meanOf(run.pr) : valid(run.pr[c]);
    const lines = (key, dash, suffix = "") => runs.map((k) => ({ name: name(k) + suffix, run: k, dash, y: set.runs[k].curves[key][c] }));
    return [
      { title: chosen === "all" ? "Precision by recall, mean of the classes, IoU 0.5" : "Precision by recall, IoU 0.5",
        x: steps(101), x_label: "recall", y_label: "precision", range: [0, 1.02],
        series: runs.map((k) => ({ name: name(k), run: k, y: pr(set.runs[k]) })) },
      { title: "F1 by score", x: scores, x_label: "score", y_label: "F1", range: [0, 1.02], series: lines("f1") },
      { title: "Precision (solid) and recall (dashed) by score", x: scores, x_label: "score", y_label: "share", range: [0, 1.02],
        series: [...lines("precision", false, ", precision"), ...lines("recall", true, ", recall")] },
    ];
  }

  function evaluation(section) {
    const index = Number(section.dataset.set);
    const set = data.sets[index];
    const runs = known(set);
    const first = set.runs[runs[0]];
    const classes = $(".curve-class", section);
    classes.append(option("all", "all classes"));
    if (set.classes.length > 1) classes.append(option("compare", `compare classes${runs.length > 1 ? " of " + data.runs[runs[0]] : ""}`));
    set.classes.forEach((name, c) => { if (first.curves.f1[c] && first.curves.f1[c].some((v) => v != null)) classes.append(option(c, name)); });
    const place = $(".curves", section);
    const showCurves = () => { clear(place); curveSpecs(set, classes.value).forEach((spec) => addChart(spec, place)); };
    classes.addEventListener("change", showCurves);
    showCurves();

    const bins = first.calibration["right at IoU 0.5"].target.length;
    const centers = Array.from({ length: bins }, (_, k) => (k + 0.5) / bins);
    addChart({
      title: "Share of right detections by score, IoU 0.5", x: centers, x_label: "score", y_label: "share right", range: [0, 1.02],
      series: [{ name: "perfect", y: centers, dash: true, grey: true }].concat(runs.map((k) => (
        { name: data.runs[k], run: k, points: true, y: set.runs[k].calibration["right at IoU 0.5"].target }))),
    }, $(".calibration", section));
    heat(set, runs, $(".heat", section));
    confusion(section, index, set, runs);
  }

  function heat(set, runs, place) {
    for (const k of runs) {
      const rows = set.runs[k].scatter;
      const most = Math.max(1, ...rows.flat());
      const picture = draw("svg", { viewBox: "0 0 240 150" });
      rows.forEach((row, i) => row.forEach((count, j) => {
        if (!count) return;
        const cell = draw("rect", { x: 30 + j * 10, y: 120 - (i + 1) * 6, width: 10, height: 6,
          fill: `rgba(${css("--heat")}, ${0.12 + 0.88 * Math.sqrt(count / most)})` });
        cell.append(draw("title", {}, `${count} detections`));
        picture.append(cell);
      }));
      picture.append(draw("rect", { x: 30, y: 0, width: 200, height: 120, fill: "none", stroke: css("--soft"), "stroke-width": 0.5 }));
      [[30, 132, "0"], [222, 132, "1"], [105, 146, "score"], [12, 120, "0.5"], [20, 8, "1"], [2, 64, "IoU"]]
        .forEach(([x, y, text]) => picture.append(draw("text", { x, y }, text)));
      place.append(make("figure", {}, picture, make("figcaption", { textContent: data.runs[k] })));
    }
  }

  // ---------------------------------------------------------------- confusion
  const MOST = 40;
  function confusion(section, index, set, runs) {
    const run = $(".cm-run", section), which = $(".cm-which", section), norm = $(".cm-norm", section);
    runs.forEach((k) => run.append(option(k, data.runs[k])));
    const labels = () => {
      const at = which.selectedIndex < 0 ? 0 : which.selectedIndex;
      which.replaceChildren(...set.runs[run.value].confusion.map((m, k) =>
        option(k, `IoU ${m.iou}, score from ${round(m.score)}${m.best ? " (best F1)" : ""}`)));
      which.selectedIndex = at;
    };
    const show = () => {
      const matrix = set.runs[run.value].confusion[which.value];
      const nothing = set.classes.length;
      const name = (c, row) => c === nothing ? (row ? "(nothing)" : "(not found)") : set.classes[c];
      const weight = new Array(nothing + 1).fill(0);
      const rowSum = weight.slice(), columnSum = weight.slice();
      const counts = new Map();
      for (const [t, p, n] of matrix.cells) {
        counts.set(t + "," + p, n);
        rowSum[t] += n; columnSum[p] += n;
        if (t !== p) { weight[t] += n; weight[p] += n; }
      }
      let shown = set.classes.map((_, c) => c).filter((c) => rowSum[c] || columnSum[c]);
      const cut = shown.length > MOST;
      if (cut) shown = shown.sort((a, b) => weight[b] - weight[a]).slice(0, MOST).sort((a, b) => a - b);
      shown.push(nothing);
      const head = make("tr", {}, make("td"), ...shown.map((c) => make("th", { scope: "col" }, make("span", { textContent: name(c, false) }))));
      const table = make("table", { className: "matrix" }, make("thead", {}, head));
      const body = make("tbody");
      for (const t of shown) {
        const line = make("tr", {}, make("th", { scope: "row", textContent: name(t, true), title: name(t, true) }));
        for (const p of shown) {
          const n = counts.get(t + "," + p) || 0;
          const share = n / ((norm.value === "column" ? columnSum[p] : rowSum[t]) || 1);
          const cell = make("td", { className: "cell" + (t === p ? " same" : "") });
          cell.style.setProperty("--v", n ? share.toFixed(3) : 0);
          if (n) {
            const percent = Math.round(100 * share);
            const text = norm.value === "count" ? String(n) : percent ? String(percent) : "<1";
            const button = make("button", { type: "button", textContent: text, title: `${name(t, true)} taken for ${name(p, false)}: ${n}` });
            shade(cell, share);
            button.addEventListener("click", () => galleries[index].ask(t, p, nothing, matrix.score, Number(run.value)));
            cell.append(button);
          }
          line.append(cell);
        }
        body.append(line);
      }
      table.append(body);
      const place = $(".cm", section);
      place.replaceChildren(table);
      if (cut) place.append(make("p", { className: "note", textContent: `The ${MOST} classes with most mistakes.` }));
      const worst = matrix.cells.filter(([t, p]) => t !== p && t !== nothing && p !== nothing).sort((a, b) => b[2] - a[2]).slice(0, 8);
      $(".cm-top", section).replaceChildren(...worst.length ? [make("p", { className: "note",
        textContent: "Most taken for another class: " + worst.map(([t, p, n]) => `${name(t, true)} for ${name(p, false)} (${n})`).join(", ") + "." })] : []);
    };
    run.addEventListener("change", () => { labels(); show(); });
    which.addEventListener("change", show);
    norm.addEventListener("change", show);
    labels();
    show();
  }

  // ---------------------------------------------------------------- gallery
  const RIGHT = data.kinds.findIndex((k) => k.key === "right");
  const MISSED = data.kinds.findIndex((k) => k.key === "missed");
  const galleries = {};

  function overlay(image, boxes) {
    const layer = draw("svg", { viewBox: `0 0 ${image.w} ${image.h}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const box of boxes) {
      const rect = draw("rect", { x: box.x, y: box.y, width: Math.max(box.w, 0), height: Math.max(box.h, 0), class: `k-${box.key}${box.dim ? " dim" : ""}` });
      layer.append(rect);
    }
    return layer;
  }
  function withLabels(layer, image, boxes, width) {
    const unit = image.w / Math.max(width, 1), size = 11 * unit;
    for (const box of boxes) {
      if (!box.label) continue;
      const wide = Math.min(box.label.length * size * 0.64 + 4 * unit, image.w);
      const x = Math.min(Math.max(box.x, 0), image.w - wide);
      const y = box.y >= size * 1.3 ? box.y - size * 1.3 : Math.min(Math.max(box.y, 0), image.h - size * 1.3);
      const group = draw("g", { class: box.dim ? "dim" : "" });
      group.append(
        draw("rect", { x, y, width: wide, height: size * 1.3, style: `fill:${box.color};stroke:none` }),
        draw("text", { x: x + 2 * unit, y: y + size, "font-size": size, class: "label", fill: box.bright ? "#000" : "#fff", style: `font-size:${size}px` }, box.label));
      layer.append(group);
    }
  }
  function picture(image, boxes, labels) {
    const frame = make("div", { className: "picture" });
    const img = make("img", { src: image.src, alt: image.file, width: image.shown[0], height: image.shown[1], decoding: "async" });
    const layer = overlay(image, boxes);
    frame.append(img, layer);
    if (labels) {
      const place = () => { $$("g", layer).forEach((g) => g.remove()); withLabels(layer, image, boxes, img.clientWidth); };
      new ResizeObserver(place).observe(img);
    }
    return frame;
  }

  function gallery(section) {
    const index = Number(section.dataset.set);
    const content = data.galleries[index];
    const pick = (name) => $(name, section);
    const run = pick(".g-run"), why = pick(".g-why"), cls = pick(".g-class"), kind = pick(".g-kind"), size = pick(".g-size");
    const score = pick(".g-score"), iou = pick(".g-iou");
    const tiles = pick(".tiles"), note = pick("[role=status]");
    known(data.sets[index]).forEach((k) => run.append(option(k, data.runs[k])));
    const reasons = new Set(content.images.flatMap((image) => image.why));
    why.append(option("", "any"));
    for (const reason of ["worst", "best", "random", ...data.kinds.map((k) => k.key)]) {
      if (reasons.has(reason)) why.append(option(reason, reason in { worst: 1, best: 1, random: 1 } ? reason : "kind: " + reason));
    }
    cls.append(option("", "all"), ...content.classes.map((name, c) => option(c, name)));
    kind.append(option("", "all"), ...data.kinds.map((k, n) => option(n, k.name)));
    size.append(option("", "all"), ...data.sizes.map((name, n) => option(n, name)));

    const BRIGHT = { class: 1, location: 1, both: 1, duplicate: 1 };
    const detections = (image, k) => (image.runs[k] ? image.runs[k].boxes : []).map(([x, y, w, h, c, s, n, overlap, large]) => ({
      x, y, w, h, c, s, n, overlap, large, key: data.kinds[n].key, color: data.kinds[n].color, bright: data.kinds[n].key in BRIGHT,
      label: `${content.classes[c]} ${s.toFixed(2)}` }));
    const objects = (image, k) => image.gt.map(([x, y, w, h, c, large], g) => {
      // At a higher score, fewer objects are found.
      const least = Math.max(Number(score.value), 1e-9);
      const missed = image.runs[k] && image.runs[k].found[g] < least;
      return { x, y, w, h, c, large, missed, key: missed ? "missed" : "gt", color: missed ? "#d55e00" : "#009e73", label: content.classes[c] };
    });
    const fits = (box, isObject) => {
      if (cls.value !== "" && box.c !== Number(cls.value)) return false;
      if (size.value !== "" && box.large !== Number(size.value)) return false;
      if (isObject) return kind.value === "" || Number(kind.value) === MISSED;
      if (box.s < Number(score.value) || box.overlap > Number(iou.value)) return false;
      return kind.value === "" || box.n === Number(kind.value);
    };
    const isFiltered = () => cls.value !== "" || size.value !== "" || kind.value !== "" || Number(iou.value) < 1;
    const boxesOf = (image, k) => {
      const found = detections(image, k).filter((b) => b.s >= Number(score.value));
      const missed = objects(image, k).filter((b) => b.missed);
      return [...missed.map((b) => ({ ...b, dim: !fits(b, true) })), ...found.reverse().map((b) => ({ ...b, dim: !fits(b, false) }))];
    };
    let visible = [], shownTiles = 24;
    const show = () => {
      score.nextElementSibling.value = Number(score.value).toFixed(2);
      iou.nextElementSibling.value = Number(iou.value).toFixed(2);
      const k = Number(run.value);
      visible = content.images.filter((image) => {
        if (why.value && !image.why.includes(why.value)) return false;
        return !isFiltered() || boxesOf(image, k).some((b) => !b.dim);
      });
      const more = visible.length > shownTiles ? make("button", { type: "button", className: "more", textContent: `Show ${visible.length - shownTiles} more` }) : null;
      if (more) more.addEventListener("click", () => { shownTiles = Infinity; show(); });
      tiles.replaceChildren(...visible.slice(0, shownTiles).map((image, n) => {
        const shown = boxesOf(image, k);
        const missed = objects(image, k).filter((b) => b.missed).length;
        const wrong = shown.filter((b) => b.n !== undefined && b.n !== RIGHT).length;
        const tile = make("button", { type: "button", className: "tile" }, picture(image, shown, false),
          make("span", { className: "cap", textContent: `${image.file}: ${missed} of ${image.gt.length} missed, ${wrong} wrong (${image.why.join(", ")})` }));
        tile.addEventListener("click", () => view(n));
        return tile;
      }), ...more ? [more] : []);
      note.textContent = `${visible.length} of ${content.images.length} images, chosen from ${content.total}.`;
    };
    for (const input of [run, why, cls, kind, size, score, iou]) input.addEventListener("input", show);
    // Detections are shown from the score with the highest F1 on: fewer boxes, and those that count.
    const best = () => Math.floor(100 * data.sets[index].runs[run.value].confusion[0].score) / 100;
    score.value = best();
    const reset = () => { why.value = cls.value = kind.value = size.value = ""; score.value = best(); iou.value = 1; };
    pick(".g-reset").addEventListener("click", () => { reset(); show(); });
    galleries[index] = { ask(t, p, nothing, least, k) {
      reset();
      run.value = k;
      score.value = least;
      const wanted = t === p ? "right" : p === nothing ? "missed" : t === nothing ? "background" : "class";
      cls.value = p === nothing ? t : p;
      kind.value = data.kinds.findIndex((row) => row.key === wanted);
      show();
      section.scrollIntoView();
      cls.focus();
    } };

    const dialog = $("#viewer");
    const off = new Set();
    let original = false, labels = true;
    function view(n) {
      const image = visible[n];
      if (!image) return;
      const views = make("div", { className: "views" });
      const add = (title, boxes) => {
        const holder = make("div", { className: "scroll" + (original ? " original" : "") }, picture(image, boxes.filter((b) => !off.has(b.key)), labels));
        views.append(make("div", {}, make("h4", { textContent: title }), holder));
      };
      add("Ground truth", objects(image, Number(run.value)).map((b) => ({ ...b, label: b.label })));
      for (const k of known(data.sets[index])) {
        const more = image.runs[k] ? image.runs[k].more : 0;
        add(data.runs[k] + (more ? `, without ${more} more of lower score` : ""), boxesOf(image, k).filter((b) => !b.missed));
      }
      const step = (text, to, title) => {
        const button = make("button", { type: "button", textContent: text, title, disabled: !visible[to] });
        button.addEventListener("click", () => view(to));
        return button;
      };
      const box = (text, checked, change) => {
        const input = make("input", { type: "checkbox", checked });
        input.addEventListener("change", () => { change(input.checked); view(n); });
        return make("label", {}, input, " " + text);
      };
      const close = make("button", { type: "button", textContent: "Close" });
      close.addEventListener("click", () => dialog.close());
      const kinds = [["gt", "found objects"], ...data.kinds.map((k) => [k.key, k.name])];
      dialog.replaceChildren(
        make("div", { className: "controls" }, step("←", n - 1, "Previous image"), step("→", n + 1, "Next image"), close,
          make("b", { textContent: image.file }),
          make("span", { className: "note", textContent: `${image.w} × ${image.h}, kept in ${image.shown[0]} × ${image.shown[1]}` })),
        make("div", { className: "controls" }, box("original resolution", original, (v) => { original = v; }), box("labels", labels, (v) => { labels = v; }),
          ...kinds.map(([key, name]) => box(name, !off.has(key), (v) => { v ? off.delete(key) : off.add(key); }))),
        views);
      dialog.onkeydown = (event) => {
        if (event.target.tagName === "INPUT") return;
        if (event.key === "ArrowLeft") view(n - 1);
        if (event.key === "ArrowRight") view(n + 1);
      };
      if (!dialog.open) dialog.showModal();
    }
    show();
  }

  $$("section.gallery").forEach(gallery);
  $$("section.set").forEach(evaluation);
  for (const button of $$("button.zoom")) {
    button.addEventListener("click", () => {
      const dialog = $("#viewer");
      const close = make("button", { type: "button", textContent: "Close" });
      close.addEventListener("click", () => dialog.close());
      const img = $("img", button);
      dialog.onkeydown = null;
      dialog.replaceChildren(make("div", { className: "controls" }, close), make("img", { src: img.src, alt: img.alt }));
      dialog.showModal();
    });
  }
  root.dataset.ready = "yes";
})();
