"use strict";
// Everything from the data reaches the page as text (textContent, setAttribute of checked names), never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { summary, suspects, names } = data;
  const PAGE = 25;
  const MARKS = ["wrong", "right", "unsure"];
  const $ = (id) => document.getElementById(id);

  // ---- text ------------------------------------------------------------------------------------------------
  const visible = (text) =>
    String(text).replace(/[\u0000-\u001f\u007f]/g, (c) =>
      c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)));
  const whole = (n) => n.toLocaleString("en");
  const percent = (x, digits = 1) => (x === null ? "–" : (100 * x).toFixed(digits) + "%");
  const labelName = (label) => (label < 0 ? "none" : names[label] === undefined ? String(label) : names[label]);
  const idOf = (i) => (suspects.id ? suspects.id[i] : String(suspects.sample[i]));

  function el(tag, options = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (value === null || value === undefined) continue;
      if (key === "class") node.className = value;
      else if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const bdi = (text, cls) => el("bdi", { dir: "auto", class: cls, title: visible(text), text: visible(text) });
  function svg(tag, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  function bytes(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < out.length; i++) out[i] = text.charCodeAt(i);
    return out;
  }

  // ---- summary ---------------------------------------------------------------------------------------------
  function fact(name, value, note, cls) {
    const dd = el("dd", { text: value });
    if (note) dd.append(el("small", { text: note }));
    $("facts").append(el("div", { class: cls }, el("dt", { text: name }), dd));
  }
  function drawSummary() {
    const s = summary;
    $("title").textContent = visible(data.title);
    $("made").textContent = visible(`${s.file}, recorded ${s.created.slice(0, 10)}, ranked by ${s.method}`);
    fact("labels look wrong", whole(s.flagged), `${percent(s.flagged / Math.max(1, s.samples))} of all samples`, "lead");
    fact("estimated wrong labels", s.rate === null ? "–" : percent(s.rate),
      s.interval ? `${percent(s.interval[0])} to ${percent(s.interval[1])}` : "no interval known");
    fact("samples", whole(s.samples), s.never_seen ? `${whole(s.never_seen)} never seen` : "all seen");
    fact("classes", whole(s.classes));
    const notes = [s.is_recording ? "training not over" : null, s.dropped ? `${whole(s.dropped)} not written` : null,
      s.epochs_read && s.epochs_read < s.epochs ? `ranked by the first ${whole(s.epochs_read)}` : null];
    fact("epochs", whole(s.epochs), notes.filter((note) => note).join(", "));
    fact("outputs of", s.mode === "train" ? "training" : "evaluation", s.mode === "train" ? "steps, before their update" : "mode, after each epoch");
    fact("labels fitted", percent(s.fitted), "predicted in the last epoch");
    if (s.stability !== null) fact("agreement of runs", s.stability.toFixed(3), "rank correlation");
    const words = { low: "Treat the estimate as rough.", fair: "How far to trust the estimate:", none: "No estimate." };
    $("trust").append(el("p", {}, el("strong", { text: words[s.trust.level] }), s.trust.text));
    if (s.trust.cautions.length)
      $("trust").append(el("ul", {}, ...s.trust.cautions.map((text) => el("li", { text }))));
    const quoted = (file) => /^[\w.+/-]+$/.test(file) ? file : `'${file.replace(/'/g, "'\\''")}'`;
    const method = s.method === "lstm" ? "" : ` --method ${s.method}`;
    $("review").textContent = visible(`paddle-td review marks.csv ${s.files.map(quoted).join(" ")}${method}`);
    $("foot").textContent = visible(`Made by paddle_td_callback ${s.version}. Recording: keep=${s.keep}, labels' CRC-32 ${s.checksum}.`);
  }

  // ---- training curves ---------------------------------------------------------------------------------------
  function path(values, x, y) {
    let out = "", open = false;
    values.forEach((value, i) => {
      if (value === null) { open = false; return; }
      out += `${open ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      if (!open && (i + 1 === values.length || values[i + 1] === null)) out += "h4"; // a point by itself
      open = true;
    });
    return out;
  }
  function swatch(cls, text) {
    const line = svg("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" },
      svg("path", { class: `line ${cls}`, d: "M0 5H26" }));
    return el("span", { class: "key" }, line, text);
  }
  function drawCurves() {
    const c = data.curves, n = c.all.length, W = 460, H = 370, L = 40, R = 8, T = 10, B = 34;
    const x = (i) => L + (n > 1 ? (i / (n - 1)) * (W - L - R) : (W - L - R) / 2);
    const y = (v) => T + (1 - v) * (H - T - B);
    const last = (values) => percent(values.filter((v) => v !== null).at(-1) ?? null);
    const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", width: "100%",
      "aria-label": `Over ${n} epochs the share of given labels predicted ends at ${last(c.accuracy)}. The mean ` +
        `probability of the given label ends at ${last(c.others)} for labels that look right and ${last(c.flagged)} for those that look wrong.` });
    for (const v of [0, 0.25, 0.5, 0.75, 1]) {
      chart.append(svg("path", { class: "grid", d: `M${L} ${y(v)}H${W - R}` }));
      const text = svg("text", { x: L - 6, y: y(v) + 4, "text-anchor": "end" });
      text.textContent = percent(v, 0);
      chart.append(text);
    }
    const step = Math.max(1, Math.ceil((n - 1) / 6));
    for (let i = 0; i < n; i += step) {
      const text = svg("text", { x: x(i), y: H - B + 16, "text-anchor": "middle" });
      text.textContent = i + 1;
      chart.append(text);
    }
    const axis = svg("text", { x: (L + W - R) / 2, y: H - 3, "text-anchor": "middle" });
    axis.textContent = "epoch";
    chart.append(axis);
    for (const kind of ["accuracy", "all", "others", "flagged"])
      chart.append(svg("path", { class: `line ${kind}`, d: path(c[kind], x, y) }));
    $("curves").append(chart);
    $("curves-legend").append(swatch("accuracy", "predicted"), swatch("all", "probability, all"),
      swatch("others", "labels that look right"), swatch("flagged", "labels that look wrong"));
  }

  // ---- the map -------------------------------------------------------------------------------------------------
  const points = (() => {
    const raw = bytes($("points").textContent), n = data.points.n, at = (from, count) => raw.slice(from, from + count).buffer;
    return {
      n,
      confidence: new Uint16Array(at(0, 2 * n)),
      variability: new Uint16Array(at(2 * n, 2 * n)),
      given: new Uint16Array(at(4 * n, 2 * n)),
      score: raw.subarray(6 * n, 7 * n),
      sample: data.points.named ? new Uint32Array(at(7 * n, 4 * n)) : null,
    };
  })();
  const DOTS = 20000; // more are drawn as density
  const placeOfSuspect = new Map(suspects.sample.map((sample, i) => [sample, i]));
  const order = points.n <= DOTS ? Array.from({ length: points.n }, (_, i) => i).sort((a, b) => points.score[a] - points.score[b]) : null;
  const map = $("map"), pen = map.getContext("2d");
  const MARGIN = { left: 56, right: 10, top: 10, bottom: 38 };
  const select = { c0: 0, c1: 1, v0: 0, v1: 0.5 };
  let frame = { w: 0, h: 0 }, cursor = null, dragFrom = null, dragTo = null, ramp = null;
  const filter = { given: "", suggested: "", mark: "", id: "", page: 0 };

  const isSelecting = () => select.c0 > 0 || select.c1 < 1 || select.v0 > 0 || select.v1 < 0.5;
  const toX = (v) => MARGIN.left + (v / 0.5) * (frame.w - MARGIN.left - MARGIN.right);
  const toY = (c) => MARGIN.top + (1 - c) * (frame.h - MARGIN.top - MARGIN.bottom);
  const fromX = (x) => Math.min(0.5, Math.max(0, ((x - MARGIN.left) / (frame.w - MARGIN.left - MARGIN.right)) * 0.5));
  const fromY = (y) => Math.min(1, Math.max(0, 1 - (y - MARGIN.top) / (frame.h - MARGIN.top - MARGIN.bottom)));
  const pointX = (i) => toX(points.variability[i] / 131070);
  const pointY = (i) => toY(points.confidence[i] / 65535);
  const isOfClass = (i) => filter.given === "" || points.given[i] === Math.min(65535, Number(filter.given));

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => {
      const hex = style.getPropertyValue(name).trim().slice(1);
      return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
    };
    const stops = [rgb("--right"), rgb("--middle"), rgb("--wrong")];
    ramp = Array.from({ length: 256 }, (_, s) => {
      const t = (s / 255) * 2, k = Math.min(1, Math.floor(t));
      return stops[k].map((from, j) => Math.round(from + (stops[k + 1][j] - from) * (t - k)));
    });
    return { ink: style.getPropertyValue("--ink"), muted: style.getPropertyValue("--muted"), line: style.getPropertyValue("--line"), accent: style.getPropertyValue("--accent") };
  }
  function drawDots() {
    const r = points.n <= 2000 ? 3 : points.n <= 8000 ? 2.2 : 1.6;
    for (const i of order) {
      if (!isOfClass(i)) continue;
      const [red, green, blue] = ramp[points.score[i]];
      pen.fillStyle = `rgb(${red} ${green} ${blue} / .75)`;
      pen.beginPath();
      pen.arc(pointX(i), pointY(i), r, 0, 6.3);
      pen.fill();
    }
  }
  function drawDensity() {
    const w = Math.floor((frame.w - MARGIN.left - MARGIN.right) / 2), h = Math.floor((frame.h - MARGIN.top - MARGIN.bottom) / 2);
    const count = new Uint32Array(w * h), score = new Float64Array(w * h);
    let most = 1;
    for (let i = 0; i < points.n; i++) {
      if (!isOfClass(i)) continue;
      const cell = Math.min(h - 1, Math.floor((1 - points.confidence[i] / 65535) * h)) * w + Math.min(w - 1, Math.floor((points.variability[i] / 65535) * w));
      score[cell] += points.score[i];
      if (++count[cell] > most) most = count[cell];
    }
    const image = new ImageData(w, h);
    for (let cell = 0; cell < w * h; cell++) {
      if (!count[cell]) continue;
      const colour = ramp[Math.round(score[cell] / count[cell])];
      image.data.set(colour, 4 * cell);
      image.data[4 * cell + 3] = 70 + 185 * (Math.log1p(count[cell]) / Math.log1p(most));
    }
    const small = document.createElement("canvas");
    small.width = w; small.height = h;
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, MARGIN.left, MARGIN.top, 2 * w, 2 * h);
  }
  let waiting = false;
  function drawMap() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paintMap(); });
  }
  let base = null; // the points, kept while only crosshair and rectangle move
  function paintMap() {
    const ratio = window.devicePixelRatio || 1, box = map.getBoundingClientRect();
    if (!box.width) return;
    const colour = colours();
    const key = [box.width, box.height, ratio, filter.given, colour.ink].join();
    frame = { w: box.width, h: box.height };
    if (!base || base.key !== key) {
      map.width = Math.round(box.width * ratio); map.height = Math.round(box.height * ratio);
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, frame.w, frame.h);
      pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
      pen.lineWidth = 1;
      pen.textAlign = "center";
      for (const v of [0, 0.1, 0.2, 0.3, 0.4, 0.5]) {
        pen.strokeStyle = colour.line; pen.fillStyle = colour.muted;
        pen.beginPath(); pen.moveTo(toX(v), toY(0)); pen.lineTo(toX(v), toY(1)); pen.stroke();
        pen.fillText(v.toFixed(1), toX(v), frame.h - MARGIN.bottom + 16);
      }
      pen.fillText("variability", (MARGIN.left + frame.w - MARGIN.right) / 2, frame.h - 5);
      pen.textAlign = "right";
      for (const c of [0, 0.25, 0.5, 0.75, 1]) {
        pen.beginPath(); pen.moveTo(toX(0), toY(c)); pen.lineTo(toX(0.5), toY(c)); pen.stroke();
        pen.fillText(c.toFixed(2), MARGIN.left - 6, toY(c) + 4);
      }
      pen.save(); pen.translate(11, frame.h / 2 - 12); pen.rotate(-Math.PI / 2); pen.textAlign = "center";
      pen.fillText("confidence", 0, 0); pen.restore();
      if (order) drawDots(); else drawDensity();
      pen.fillStyle = colour.muted; pen.font = "italic 12px system-ui, 'DejaVu Sans', sans-serif"; pen.textAlign = "right";
      for (const [text, y] of [["easy to learn", toY(0.97)], ["ambiguous", toY(0.5) - 6], ["hard to learn", toY(0.02)]])
        pen.fillText(text, toX(0.495), y);
      const image = document.createElement("canvas");
      image.width = map.width; image.height = map.height;
      image.getContext("2d").drawImage(map, 0, 0);
      base = { key, image };
    } else {
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, map.width, map.height);
      pen.drawImage(base.image, 0, 0);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.strokeStyle = colour.accent; pen.lineWidth = 1.5;
    const chosen = dragTo ? dragRange() : isSelecting() ? select : null;
    if (chosen) {
      pen.setLineDash([5, 4]);
      pen.strokeRect(toX(chosen.v0), toY(chosen.c1), toX(chosen.v1) - toX(chosen.v0), toY(chosen.c0) - toY(chosen.c1));
      pen.setLineDash([]);
    }
    if (cursor && document.activeElement === map && cursor.byKey) {
      pen.beginPath(); pen.moveTo(cursor.x - 9, cursor.y); pen.lineTo(cursor.x + 9, cursor.y);
      pen.moveTo(cursor.x, cursor.y - 9); pen.lineTo(cursor.x, cursor.y + 9); pen.stroke();
    }
  }
  function dragRange() {
    const [x0, x1] = [dragFrom.x, dragTo.x].sort((a, b) => a - b), [y0, y1] = [dragFrom.y, dragTo.y].sort((a, b) => a - b);
    const round = (value) => Math.round(value * 1000) / 1000;
    return { v0: round(fromX(x0)), v1: round(fromX(x1)), c0: round(fromY(y1)), c1: round(fromY(y0)) };
  }
  /** What lies at a place: the nearest point where points have names, and how many are near. */
  function near(x, y) {
    const reach = order ? 9 : 5;
    let best = -1, least = reach * reach, n = 0, sum = 0;
    for (let i = 0; i < points.n; i++) {
      const dy = pointY(i) - y;
      if (dy > reach || dy < -reach) continue;
      const dx = pointX(i) - x, d = dx * dx + dy * dy;
      if (d > reach * reach || !isOfClass(i)) continue;
      n++; sum += points.score[i];
      if (d <= least) { least = d; best = i; }
    }
    let suspect = -1;
    if (points.sample && best >= 0) suspect = placeOfSuspect.get(points.sample[best]) ?? -1;
    else if (best >= 0) {
      least = reach * reach;
      suspects.confidence.forEach((c, i) => {
        const d = (toX(suspects.variability[i]) - x) ** 2 + (toY(c) - y) ** 2;
        if (d <= least && (filter.given === "" || suspects.given[i] === Number(filter.given))) { least = d; suspect = i; }
      });
    }
    return { n, mean: n ? sum / n / 255 : 0, best, suspect };
  }
  function describePlace(found) {
    if (!found.n) return "nothing here";
    const many = `${whole(found.n)} ${found.n === 1 ? "sample" : "samples"} here, mean noise score ${found.mean.toFixed(2)}`;
    if (found.suspect >= 0) {
      const i = found.suspect;
      return `${visible(idOf(i)).slice(0, 80)}: given ${visible(labelName(suspects.given[i])).slice(0, 60)}, suggested ` +
        `${visible(labelName(suspects.suggested[i])).slice(0, 60)}, noise score ${suspects.score[i].toFixed(3)}; ${many}`;
    }
    if (points.sample) return `sample ${points.sample[found.best]}, noise score ${(points.score[found.best] / 255).toFixed(2)}; ${many}`;
    return many;
  }
  function showTip(x, y) {
    const found = near(x, y), tip = $("tip");
    if (!found.n) { tip.hidden = true; return found; }
    tip.replaceChildren();
    const content = found.suspect >= 0 ? data.content[found.suspect] : null;
    if (content && content.image) tip.append(el("img", { src: content.image, alt: "" }));
    tip.append(bdi(describePlace(found)));
    tip.hidden = false;
    const left = x + 16 + tip.offsetWidth > frame.w ? x - 16 - tip.offsetWidth : x + 16;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 12, frame.h - tip.offsetHeight))}px`;
    return found;
  }
  function placeOf(event) {
    const box = map.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }
  function saySelection() {
    if (!isSelecting()) {
      $("map-readout").textContent = filter.given === "" ? "" : `Only samples given ${visible(labelName(Number(filter.given))).slice(0, 80)} are drawn.`;
      return;
    }
    let n = 0, sum = 0;
    const c0 = select.c0 * 65535 - 0.5, c1 = select.c1 * 65535 + 0.5, v0 = select.v0 * 131070 - 0.5, v1 = select.v1 * 131070 + 0.5;
    for (let i = 0; i < points.n; i++)
      if (points.confidence[i] >= c0 && points.confidence[i] <= c1 && points.variability[i] >= v0 && points.variability[i] <= v1 && isOfClass(i)) { n++; sum += points.score[i]; }
    const scale = data.points.of / Math.max(1, points.n), about = scale > 1 ? "about " : "";
    $("map-readout").textContent = `Selected: ${about}${whole(Math.round(n * scale))} samples` +
      (n ? `, mean noise score ${(sum / n / 255).toFixed(2)}` : "") + `; ${whole(shown.length)} of them in the list below.`;
  }
  function setSelection(range) {
    Object.assign(select, range);
    for (const name of ["c0", "c1", "v0", "v1"]) $(name).value = String(select[name]);
    applyFilters();
  }
  function wireMap() {
    const n = data.points.n;
    $("map-kind").textContent = order ? `${whole(n)} samples` : `${whole(n)}${data.points.of > n ? ` of ${whole(data.points.of)}` : ""} samples, by density`;
    map.setAttribute("aria-label", `Data map of ${whole(n)} samples: confidence upwards, variability to the right. Arrow keys move a ` +
      "crosshair, Enter goes to the suspect there; the fields below select a range.");
    map.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      dragFrom = placeOf(event); dragTo = null;
      if (event.pointerType !== "touch") map.setPointerCapture(event.pointerId);
    });
    map.addEventListener("pointermove", (event) => {
      const at = placeOf(event);
      if (dragFrom && event.pointerType !== "touch") {
        if (dragTo || Math.hypot(at.x - dragFrom.x, at.y - dragFrom.y) > 5) { dragTo = at; $("tip").hidden = true; drawMap(); }
      } else showTip(at.x, at.y);
    });
    map.addEventListener("pointerup", (event) => {
      const at = placeOf(event);
      if (dragTo) { const range = dragRange(); dragFrom = dragTo = null; setSelection(range); }
      else if (dragFrom) {
        dragFrom = null;
        const found = showTip(at.x, at.y);
        if (found.suspect >= 0) goTo(found.suspect);
      }
    });
    map.addEventListener("pointercancel", () => { dragFrom = dragTo = null; drawMap(); });
    map.addEventListener("pointerleave", () => { $("tip").hidden = true; });
    map.addEventListener("blur", () => { cursor = null; $("tip").hidden = true; drawMap(); });
    map.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step) {
        const far = event.shiftKey ? 24 : 6, from = cursor || { x: toX(0.02), y: toY(0.1) };
        cursor = { x: Math.min(toX(0.5), Math.max(toX(0), from.x + far * step[0])), y: Math.min(toY(0), Math.max(toY(1), from.y + far * step[1])), byKey: true };
        $("map-readout").textContent = describePlace(showTip(cursor.x, cursor.y));
      } else if (event.key === "Enter" && cursor) {
        const found = near(cursor.x, cursor.y);
        if (found.suspect >= 0) goTo(found.suspect);
      } else if (event.key === "Escape") { cursor = null; $("tip").hidden = true; setSelection({ c0: 0, c1: 1, v0: 0, v1: 0.5 }); }
      else return;
      event.preventDefault();
      drawMap();
    });
    const limit = { c0: 1, c1: 1, v0: 0.5, v1: 0.5 };
    for (const name of ["c0", "c1", "v0", "v1"])
      $(name).addEventListener("change", () => {
        const value = $(name).value === "" ? (name.endsWith("0") ? 0 : limit[name]) : Number($(name).value);
        setSelection({ [name]: Math.min(limit[name], Math.max(0, value)) });
      });
    $("unselect").addEventListener("click", () => setSelection({ c0: 0, c1: 1, v0: 0, v1: 0.5 }));
    new ResizeObserver(drawMap).observe(map);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  }

  // ---- marks ---------------------------------------------------------------------------------------------------
  const storageKey = `paddle-td marks ${summary.file} ${summary.checksum} ${summary.samples} ${summary.ids_checksum}`;
  const marks = new Map();
  let isKept = true; // not by a browser that stores nothing for files, or is full: then the page alone has the marks
  /** Take what is stored, so that marks set in another tab are not lost. */
  function readMarks() {
    if (!isKept) return;
    try {
      const stored = Object.entries(JSON.parse(localStorage.getItem(storageKey)) || Object.fromEntries(marks));
      marks.clear();
      for (const [sample, mark] of stored) if (MARKS.includes(mark)) marks.set(Number(sample), mark);
    } catch { /* another's text */ }
  }
  function keepMarks() {
    try { localStorage.setItem(storageKey, JSON.stringify(Object.fromEntries(marks))); } catch { isKept = false; }
  }
  /** Wilson's interval for a share, 95 percent. */
  function wilson(hits, n) {
    const z = 1.96, p = hits / n, middle = p + (z * z) / (2 * n), half = z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
    return [(middle - half) / (1 + (z * z) / n), (middle + half) / (1 + (z * z) / n)];
  }
  function sayMarks() {
    const count = Object.fromEntries(MARKS.map((mark) => [mark, 0]));
    for (const mark of marks.values()) count[mark]++;
    const judged = count.wrong + count.right;
    let text = marks.size ? MARKS.map((mark) => `${whole(count[mark])} ${mark}`).join(", ") : "Nothing marked yet.";
    if (judged) {
      const [low, high] = wilson(count.wrong, judged);
      text += `. Of the judged labels ${percent(count.wrong / judged, 0)} are wrong (95% interval ${percent(low, 0)} to ${percent(high, 0)}).`;
    }
    $("marks-said").textContent = text;
    $("export").disabled = $("clear").disabled = marks.size === 0;
  }
  function cell(value) {
    let text = String(value);
    if (/^'*(?:[=@\t\r\n\uff1d\uff0b\uff0d\uff20]|[+-](?!\d+(?:\.\d+)?$))/.test(text)) text = "'" + text; // no spreadsheet runs it; read back by paddle-td review
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  }
  function marksAsCsv() {
    const rows = [["sample", "sample_id", "mark", "given_label", "suggested_label", "corrected_label", "noise_score", "given_name", "suggested_name"]];
    const unlisted = new Set(marks.keys()); // marked when the page had a longer list
    suspects.sample.forEach((sample, i) => {
      if (!unlisted.delete(sample)) return;
      const [given, suggested] = [suspects.given[i], suspects.suggested[i]];
      rows.push([sample, suspects.id ? cell(suspects.id[i]) : "", marks.get(sample), given, suggested < 0 ? "" : suggested, "",
        suspects.score[i], cell(labelName(given)), suggested < 0 ? "" : cell(labelName(suggested))]);
    });
    for (const sample of unlisted) rows.push([sample, "", marks.get(sample), "", "", "", "", "", ""]);
    return "\ufeff" + rows.map((row) => row.join(",")).join("\r\n") + "\r\n";
  }
  function download(name, text) {
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    const link = el("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // ---- the list ------------------------------------------------------------------------------------------------
  const curves = { given: bytes(suspects.given_curve), rival: bytes(suspects.rival_curve), n: suspects.epochs.length };
  const words = suspects.sample.map((_, i) => idOf(i).toLowerCase());
  /** What fits the filters. It stays until they change, so that a mark does not move the pages under the reader. */
  let shown = [];
  function find() {
    const found = [], id = filter.id.toLowerCase();
    for (let i = 0; i < suspects.sample.length; i++) {
      if (filter.given !== "" && suspects.given[i] !== Number(filter.given)) continue;
      if (filter.suggested !== "" && suspects.suggested[i] !== Number(filter.suggested)) continue;
      const mark = marks.get(suspects.sample[i]) || "none";
      if (filter.mark && filter.mark !== mark) continue;
      if (id && !words[i].includes(id) && String(suspects.sample[i]) !== id) continue;
      const c = suspects.confidence[i], v = suspects.variability[i];
      if (c < select.c0 || c > select.c1 || v < select.v0 || v > select.v1) continue;
      found.push(i);
    }
    shown = found;
  }
  function curveOf(kind, i) {
    return Array.from(curves[kind].subarray(i * curves.n, (i + 1) * curves.n), (v) => (v === 255 ? null : v / 254));
  }
  function spark(i) {
    const W = 210, H = 54, n = curves.n, given = curveOf("given", i), rival = curveOf("rival", i);
    const x = (at) => 2 + (n > 1 ? (at / (n - 1)) * (W - 4) : W / 2), y = (v) => 3 + (1 - v) * (H - 6);
    const ends = (values) => { const seen = values.filter((v) => v !== null); return seen.length ? `${percent(seen[0], 0)} to ${percent(seen.at(-1), 0)}` : "unseen"; };
    return svg("svg", { class: "spark", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", width: W, height: H, role: "img",
      "aria-label": `Probability over ${whole(n)} epochs: given label ${ends(given)}, strongest rival ${ends(rival)}` },
      svg("path", { class: "grid", d: `M0 ${y(0)}H${W}M0 ${y(0.5)}H${W}M0 ${y(1)}H${W}`, fill: "none" }),
      svg("path", { class: "line rival", d: path(rival, x, y) }),
      svg("path", { class: "line given", d: path(given, x, y) }));
  }
  function contentOf(i) {
    const content = data.content[i];
    if (!content) return null;
    if (content.image) {
      const image = el("img", { alt: `Sample ${visible(idOf(i)).slice(0, 80)}`, src: content.image });
      image.addEventListener("load", () => { if (image.naturalWidth < 48) image.className = "small"; });
      return el("button", { class: "pic", type: "button", tabindex: "-1", title: "larger or smaller", "aria-pressed": "false", onclick: (event) => enlarge(event.currentTarget) }, image);
    }
    const isRow = content.text === undefined, clean = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, visible);
    const parts = isRow ? content.row.map(([key, value]) => clean(key ? `${key}: ${value}` : value)) : [clean(content.text)];
    const whole = parts.join(isRow && content.row[0] && content.row[0][0] ? "\n" : ", ");
    const short = parts.map((part) => part.replace(/\s+/g, " ")).join(isRow ? " · " : "");
    if (short.length <= 160) return el("div", { class: "words" }, bdi(short));
    const body = el("div", { dir: "auto", tabindex: "0", role: "group", "aria-label": "whole text" });
    body.textContent = whole;
    return el("details", { class: "words" }, el("summary", {}, bdi(short.slice(0, 160) + "…")), body);
  }
  function enlarge(picture) {
    const large = picture.getAttribute("aria-pressed") !== "true";
    picture.setAttribute("aria-pressed", String(large));
    picture.closest(".suspect").classList.toggle("large", large);
  }
  function row(i, rank) {
    const sample = suspects.sample[i], content = contentOf(i), isPicture = content && content.className === "pic";
    const score = suspects.score[i], fill = el("i");
    fill.style.width = `${100 * score}%`;
    const label = (name, value) => [el("span", { text: name }), bdi(labelName(value), "cut")];
    const node = el("li", { class: isPicture ? "suspect" : "suspect plain", tabindex: "-1", "data-place": i },
      isPicture ? content : null,
      el("div", { class: "who" }, el("b", { text: `${whole(rank)}. ` }), el("span", { class: "muted", text: `sample ${sample}` }),
        suspects.id ? bdi(idOf(i), "id") : null),
      el("div", { class: "labels" }, ...label("given", suspects.given[i]), ...label("suggested", suspects.suggested[i])),
      el("div", { class: "score" }, el("span", { class: "muted", text: "score " }), score.toFixed(3), el("div", { class: "bar", "aria-hidden": "true" }, fill)),
      spark(i),
      el("div", { class: "buttons", role: "group", "aria-label": `Label of sample ${sample}` },
        ...MARKS.map((mark) => el("button", { type: "button", class: mark, "data-mark": mark, text: mark, onclick: () => setMark(i, marks.get(sample) === mark ? null : mark, node) }))),
      isPicture ? null : content);
    showMark(node, sample);
    return node;
  }
  function showMark(node, sample) {
    const mark = marks.get(sample) || "";
    if (mark) node.dataset.mark = mark; else delete node.dataset.mark;
    for (const button of node.querySelectorAll(".buttons button"))
      button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
  }
  function setMark(i, mark, node) {
    const sample = suspects.sample[i];
    readMarks();
    if (mark) marks.set(sample, mark); else marks.delete(sample);
    keepMarks(); showMark(node, sample); sayMarks();
  }
  function drawList(focusFirst = false) {
    const all = shown, pages = Math.max(1, Math.ceil(all.length / PAGE));
    filter.page = Math.min(filter.page, pages - 1);
    const from = filter.page * PAGE, part = all.slice(from, from + PAGE);
    $("list").replaceChildren(...part.map((i) => row(i, i + 1)));
    if ($("list").firstChild) $("list").firstChild.tabIndex = 0;
    const of = summary.samples - summary.never_seen;
    $("page-said").textContent = all.length
      ? `${whole(from + 1)} to ${whole(from + part.length)} of ${whole(all.length)}` + (all.length < suspects.sample.length ? ` found, ${whole(suspects.sample.length)} listed` : ` listed, ${whole(of)} ranked`)
      : "No listed sample fits these filters and the selection on the map.";
    for (const id of ["prev", "prev2"]) $(id).disabled = filter.page === 0;
    for (const id of ["next", "next2"]) $(id).disabled = filter.page >= pages - 1;
    if (focusFirst && $("list").firstChild) $("list").firstChild.focus();
  }
  function focusRow(node) {
    for (const other of $("list").children) other.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  }
  function goTo(i) {
    if (!shown.includes(i)) resetFilters();
    const place = shown.indexOf(i);
    filter.page = Math.floor(place / PAGE);
    drawList();
    const node = [...$("list").children].find((one) => Number(one.dataset.place) === i);
    if (node) { focusRow(node); node.scrollIntoView({ block: "center" }); }
  }
  function turn(by) { filter.page += by; drawList(true); $("h-suspects").scrollIntoView({ block: "start" }); }
  function step(node, by) {
    const next = by > 0 ? node.nextElementSibling : node.previousElementSibling;
    if (next) focusRow(next);
    else if (by > 0 && !$("next").disabled) turn(1);
    else if (by < 0 && !$("prev").disabled) { filter.page--; drawList(); focusRow($("list").lastElementChild); }
  }
  function options(select, labels) {
    const count = new Map();
    for (const label of labels) count.set(label, (count.get(label) || 0) + 1);
    select.append(el("option", { value: "", text: "any class" }));
    for (const [label, n] of [...count].sort((a, b) => a[0] - b[0])) {
      const name = visible(labelName(label));
      select.append(el("option", { value: label, dir: "auto", text: `${name.length > 60 ? name.slice(0, 59) + "…" : name} (${whole(n)})` }));
    }
  }
  function applyFilters() { filter.page = 0; find(); drawList(); drawMap(); saySelection(); }
  function setPair(given, suggested) {
    resetFilters();
    for (const [id, value] of [["f-given", given], ["f-suggested", suggested]]) {
      const there = [...$(id).options].some((option) => option.value === String(value));
      if (!there) $(id).append(el("option", { value, dir: "auto", text: `${visible(labelName(value)).slice(0, 60)} (0)` }));
      $(id).value = String(value);
    }
    filter.given = String(given); filter.suggested = String(suggested);
    applyFilters();
    $("suspects").scrollIntoView({ block: "start" });
    ($("list").firstChild || $("suspects")).focus({ preventScroll: true });
  }
  function resetFilters() {
    for (const id of ["f-given", "f-suggested", "f-mark", "f-id"]) $(id).value = "";
    Object.assign(filter, { given: "", suggested: "", mark: "", id: "", page: 0 });
    setSelection({ c0: 0, c1: 1, v0: 0, v1: 0.5 });
  }
  function wireList() {
    options($("f-given"), suspects.given);
    options($("f-suggested"), suspects.suggested);
    for (const [id, name, event] of [["f-given", "given", "change"], ["f-suggested", "suggested", "change"], ["f-mark", "mark", "change"], ["f-id", "id", "input"]])
      $(id).addEventListener(event, () => { filter[name] = $(id).value; applyFilters(); });
    $("f-reset").addEventListener("click", resetFilters);
    for (const [id, by] of [["prev", -1], ["prev2", -1], ["next", 1], ["next2", 1]]) $(id).addEventListener("click", () => turn(by));
    $("export").addEventListener("click", () => download("marks.csv", marksAsCsv()));
    window.addEventListener("storage", (event) => {
      if (event.key !== storageKey && event.key !== null) return;
      readMarks();
      for (const node of $("list").children) showMark(node, suspects.sample[Number(node.dataset.place)]);
      sayMarks();
    });
    let sure = false;
    $("clear").addEventListener("click", () => {
      if (sure) { marks.clear(); keepMarks(); find(); drawList(); sayMarks(); $("f-given").focus(); }
      sure = !sure;
      $("clear").textContent = sure ? "Really clear all marks?" : "Clear marks";
    });
    $("clear").addEventListener("blur", () => { sure = false; $("clear").textContent = "Clear marks"; });
    $("list").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const node = event.target.closest(".suspect");
      if (!node) return;
      const i = Number(node.dataset.place), key = event.key.length === 1 ? event.key.toLowerCase() : event.key, mark = { w: "wrong", r: "right", u: "unsure" }[key];
      if (mark) { setMark(i, mark, node); step(node, 1); }
      else if (key === "x" || key === "Backspace") setMark(i, null, node);
      else if (key === "j" || key === "ArrowDown") step(node, 1);
      else if (key === "z") { const picture = node.querySelector(".pic"); if (picture) enlarge(picture); }
      else if (key === "k" || key === "ArrowUp") step(node, -1);
      else return;
      event.preventDefault();
    });
    $("list").addEventListener("click", (event) => {
      const node = event.target.closest(".suspect");
      if (node && !event.target.closest("button, details")) focusRow(node);
    });
    $("row-legend").append(swatch("given", "probability of the given label"), swatch("rival", "of its strongest rival, epoch by epoch"));
    if (data.content_note) $("row-legend").append(el("span", { text: visible(data.content_note) }));
    else if (data.content.length && data.content.length < suspects.sample.length)
      $("row-legend").append(el("span", { text: `The first ${whole(data.content.length)} are shown with their contents; more would make the page too large.` }));
  }

  // ---- tables --------------------------------------------------------------------------------------------------
  function meter(share) {
    const fill = el("i");
    fill.style.width = `${Math.min(100, 100 * share)}%`;
    return el("div", { class: "bar", "aria-hidden": "true" }, fill);
  }
  function tint(node, share) { node.style.background = `color-mix(in srgb, var(--wrong) ${Math.round(55 * share)}%, transparent)`; }
  function heads(...cells) { return el("thead", {}, el("tr", {}, ...cells.map(([text, cls]) => el("th", { scope: "col", class: cls, text })))); }
  function drawMatrix() {
    const { labels, counts, of } = data.matrix;
    $("matrix-said").textContent = labels.length
      ? "How many labels that look wrong were given as the row and would be the column. Press a number to see them." + (of > labels.length ? ` The ${labels.length} of ${whole(of)} classes with the most are shown, and ${whole(counts.flat().reduce((a, b) => a + b, 0))} of ${whole(data.matrix.total)} labels.` : "")
      : "No label looks wrong.";
    if (!labels.length) return;
    const most = Math.max(1, ...counts.flat());
    const body = el("tbody");
    counts.forEach((line, a) => {
      const tr = el("tr", {}, el("th", { scope: "row" }, bdi(labelName(labels[a]), "cut")));
      line.forEach((n, b) => {
        const td = el("td", { class: a === b ? "own" : null });
        if (n) {
          tint(td, n / most);
          td.append(el("button", { type: "button", text: whole(n), "aria-label": `${whole(n)} given ${visible(labelName(labels[a])).slice(0, 60)}, suggested ${visible(labelName(labels[b])).slice(0, 60)}: show them`, onclick: () => setPair(labels[a], labels[b]) }));
        }
        tr.append(td);
      });
      body.append(tr);
    });
    const top = el("tr", {}, el("th", { class: "muted", text: "given \\ suggested" }), ...labels.map((label) => el("th", { scope: "col" }, bdi(labelName(label)))));
    $("matrix").append(el("table", { class: "matrix" }, el("thead", {}, top), body));
  }
  function drawClasses() {
    const c = data.classes;
    $("classes-said").textContent = "Share of each class whose label looks wrong, and its mean noise score." + (c.of > c.label.length ? ` The first ${c.label.length} of ${whole(c.of)}.` : "");
    const most = Math.max(...c.flagged.map((n, i) => n / c.samples[i]), 1e-9);
    $("classes").append(el("table", { class: "wide" }, heads(["class", null], ["samples", "number"], ["look wrong", "number"], ["share", null], ["mean score", "number"]),
      el("tbody", {}, ...c.label.map((label, i) => el("tr", {}, el("th", { scope: "row" }, bdi(labelName(label), "cut")),
        el("td", { class: "number", text: whole(c.samples[i]) }), el("td", { class: "number", text: whole(c.flagged[i]) }),
        el("td", { class: "meter" }, percent(c.flagged[i] / c.samples[i]), meter(c.flagged[i] / c.samples[i] / most)),
        el("td", { class: "number", text: c.mean[i] === null ? "–" : c.mean[i].toFixed(3) }))))));
  }
  function drawPairs() {
    const p = data.pairs;
    $("pairs-said").textContent = p.pair.length ? "Labels that look wrong and would be the other class of the pair. Press a number to see them." + (p.of > p.pair.length ? ` The first ${p.pair.length} of ${whole(p.of)}.` : "") : "No label looks wrong.";
    if (!p.pair.length) return;
    const button = (n, from, to) => (n ? el("button", { type: "button", text: whole(n), "aria-label": `${whole(n)} given ${visible(labelName(from)).slice(0, 60)}, suggested ${visible(labelName(to)).slice(0, 60)}: show them`, onclick: () => setPair(from, to) }) : "0");
    $("pairs").append(el("table", { class: "wide" }, heads(["A", null], ["B", null], ["A for B", "number"], ["B for A", "number"]),
      el("tbody", {}, ...p.pair.map(([a, b], i) => el("tr", {}, el("th", { scope: "row" }, bdi(labelName(a), "cut")), el("td", {}, bdi(labelName(b), "cut")),
        el("td", { class: "number" }, button(p.counts[i][0], a, b)), el("td", { class: "number" }, button(p.counts[i][1], b, a)))))));
  }
  function drawMethods() {
    const m = data.methods;
    $("methods-said").textContent = `Rank correlation of the noise scores (1 = the same order), and how many of the ${whole(m.head)} most suspicious by ${m.names[0]} are among the ${whole(m.head)} of each method.`;
    const body = el("tbody");
    m.correlations.forEach((line, a) => {
      const tr = el("tr", {}, el("th", { scope: "row", text: m.names[a] }));
      line.forEach((value) => {
        const td = el("td", { text: value === null ? "–" : value.toFixed(2) });
        if (value !== null) tint(td, Math.max(0, value) ** 2);
        tr.append(td);
      });
      tr.append(el("td", { text: percent(m.overlap[a], 0) }));
      body.append(tr);
    });
    $("methods").append(el("table", { class: "agree" }, el("thead", {}, el("tr", {}, el("td"), ...m.names.map((name) => el("th", { scope: "col", text: name })), el("th", { scope: "col", text: "in its head" }))), body));
  }

  readMarks(); drawSummary(); drawCurves(); wireMap(); wireList(); find(); drawList(); sayMarks(); drawMatrix(); drawClasses(); drawPairs(); drawMethods(); drawMap();
})();
