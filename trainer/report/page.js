"use strict";
// Draws the curves in #data into #panels. Nothing from the data is ever parsed as markup: text goes in as text.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent).runs;
  const svgNamespace = document.getElementById("svg").namespaceURI;
  const hidden = new Set();
  const controls = {axis: document.getElementById("axis"), smoothing: document.getElementById("smoothing")};
  const margin = {left: 58, right: 12, top: 8, bottom: 24};

  const known = [
    {key: "loss", title: "Loss", unit: "nats a token", smooth: true, log: true},
    {key: "eval_loss", title: "Held-out loss", unit: "nats a token", dots: true, log: true},
    {key: "tokens_per_second", title: "Speed", unit: "tokens/s", smooth: true, zero: true},
    {key: "peak_rss_bytes", title: "Memory of the largest rank, peak", unit: "bytes", bytes: true, zero: true},
    {key: "peak_tensor_bytes", title: "Tensors of the largest rank, peak of a step", unit: "bytes", bytes: true, zero: true},
    {key: "bytes_sent", title: "Sent per rank and step", unit: "bytes", bytes: true, zero: true},
    {key: "learning_rate", title: "Learning rate", zero: true, log: true},
    {key: "grad_norm", title: "Gradient norm before clipping", smooth: true, log: true, zero: true},
  ];
  const apart = new Set(["tokens", "step_seconds", ...known.map(panel => panel.key)]);
  const others = [...new Set(runs.flatMap(run => Object.keys(run.curves)))].filter(key => !apart.has(key)).sort();
  const definitions = [...known, ...others.map(key => ({key, title: key, smooth: true}))];

  const color = run => `var(--run${run % 8})`;
  const dashes = run => ["", "6 4", "2 3", "9 3 2 3"][Math.floor(run / 8) % 4];
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const shape = (name, attributes) => {
    const made = document.createElementNS(svgNamespace, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const swatch = run => {
    const made = element("i", undefined, "swatch");
    made.style.background = color(run);
    return made;
  };

  // 12345678 -> "12.3M"; 0.0003 -> "3e-4".
  const short = (value, digits = 3) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
    const unit = size >= 999.5e9 ? [1e12, "T"] : size >= 999.5e6 ? [1e9, "G"] : size >= 999.5e3 ? [1e6, "M"]
        : size >= 9999.5 ? [1e3, "k"] : [1, ""];
    const scaled = value / unit[0];
    return String(Number(scaled.toPrecision(Math.max(digits, Math.ceil(Math.log10(Math.abs(scaled) + 1)))))) + unit[1];
  };
  const shown = (panel, value) => short(value, panel.dots || panel.key === "loss" ? 5 : 4) + (panel.bytes ? "B" : "");

  // The x of a row: its step, or the tokens trained on up to it.
  const position = (run, step) => {
    if (controls.axis.value === "step") return step;
    const tokens = run.curves.tokens;
    if (!tokens || tokens.steps.length === 0) return NaN;
    let low = 0, high = tokens.steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tokens.steps[middle] < step) low = middle + 1; else high = middle;
    }
    const [s1, t1] = [tokens.steps[low], tokens.values[low]];
    const [s0, t0] = low > 0 ? [tokens.steps[low - 1], tokens.values[low - 1]] : [0, 0];
    return s1 === s0 ? t1 : t0 + (t1 - t0) * Math.min(1, Math.max(0, (step - s0) / (s1 - s0)));
  };

  // Exponential mean without the pull of its start (as Adam corrects its moments).
  const smoothed = (points, weight) => {
    let mean = 0, share = 0;
    return points.map(point => {
      if (point.y === null) return point;
      mean = weight * mean + (1 - weight) * point.y;
      share = weight * share + (1 - weight);
      return {...point, y: mean / share};
    });
  };

  const pointsOf = (panel, index) => {
    const curve = runs[index].curves[panel.key];
    if (!curve || hidden.has(index)) return [];
    return curve.steps.map((step, i) => ({step, x: position(runs[index], step), y: curve.values[i]}))
        .filter(point => Number.isFinite(point.x));
  };

  // Round numbers in [low, high], about `count` of them.
  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= rough * 0.75);
    const made = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) made.push(i * step);
    return made;
  };
  const logTicks = (low, high) => {
    const made = [];
    const span = Math.log10(high / low);
    const factors = span > 4 ? [1] : span > 1.2 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) {
      for (const factor of factors) {
        const value = factor * 10 ** power;
        if (value >= low * 0.999 && value <= high * 1.001) made.push(value);
      }
    }
    return made.length > 1 ? made : [low, high];
  };

  const xDomain = () => {
    let high = 0;
    for (const [index, run] of runs.entries()) {
      if (hidden.has(index)) continue;
      for (const curve of Object.values(run.curves)) {
        for (const step of [curve.steps[curve.steps.length - 1]]) high = Math.max(high, position(run, step) || 0);
      }
    }
    return [0, high || 1];
  };

  const yDomain = (panel, values, log) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (log && value <= 0) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (low > high) return log ? [0.1, 1] : [0, 1];
    if (log) return low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
    if (panel.zero && low >= 0) low = 0;
    if (low === high) return low === 0 ? [0, 1] : [Math.min(0, low), Math.max(0, high * 1.1)];
    const room = (high - low) * 0.05;
    return [low === 0 && panel.zero ? 0 : low - room, high + room];
  };

  class Panel {
    constructor(definition) {
      this.definition = definition;
      this.log = false;
      this.root = element("article", undefined, "panel");
      const header = element("header");
      header.append(element("h3", definition.title));
      if (definition.unit) header.append(element("span", definition.unit, "unit"));
      this.where = element("span", "", "where");
      header.append(this.where);
      if (definition.log) {
        const button = element("button", "log");
        button.title = "Logarithmic scale";
        button.setAttribute("aria-pressed", "false");
        button.addEventListener("click", () => {
          this.log = !this.log;
          button.setAttribute("aria-pressed", String(this.log));
          this.draw();
        });
        header.append(button);
      }
      this.readout = element("div", undefined, "readout");
      this.svg = shape("svg", {class: "plot", role: "img", "aria-label": definition.title});
      this.root.append(header, this.readout, this.svg);
      this.svg.addEventListener("pointermove", event => this.point(event));
      this.svg.addEventListener("pointerdown", event => this.point(event));
      this.svg.addEventListener("pointerleave", () => panels.forEach(panel => panel.read(null)));
    }

    point(event) {
      const box = this.svg.getBoundingClientRect();
      const share = (event.clientX - box.left - margin.left) / (box.width - margin.left - margin.right);
      const [low, high] = this.x;
      const at = low + Math.min(1, Math.max(0, share)) * (high - low);
      panels.forEach(panel => panel.read(at));
    }

    draw() {
      const {definition, svg} = this;
      const width = svg.clientWidth || 460, height = svg.clientHeight || 220;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.replaceChildren();
      this.points = runs.map((_, index) => pointsOf(definition, index));
      const weight = definition.smooth ? Number(controls.smoothing.value) : 0;
      this.lines = weight > 0 ? this.points.map(points => smoothed(points, weight)) : this.points;
      const finite = this.points.flat().map(point => point.y).filter(value => value !== null);
      this.x = xDomain();
      const [y0, y1] = yDomain(definition, finite, this.log);
      const scaleY = this.log ? Math.log : value => value;
      const plotWidth = width - margin.left - margin.right, plotHeight = height - margin.top - margin.bottom;
      this.px = x => margin.left + (x - this.x[0]) / (this.x[1] - this.x[0]) * plotWidth;
      this.py = y => margin.top + (1 - (scaleY(y) - scaleY(y0)) / (scaleY(y1) - scaleY(y0))) * plotHeight;

      for (const value of this.log ? logTicks(y0, y1) : ticks(y0, y1, 4)) {
        const y = this.py(value);
        svg.append(shape("line", {class: "grid", x1: margin.left, x2: width - margin.right, y1: y, y2: y}));
        const text = shape("text", {x: margin.left - 7, y: y + 4, "text-anchor": "end"});
        text.textContent = short(value, 4) + (definition.bytes && value ? "B" : "");
        svg.append(text);
      }
      const bottom = height - margin.bottom;
      svg.append(shape("line", {class: "base", x1: margin.left, x2: width - margin.right, y1: bottom, y2: bottom}));
      for (const value of ticks(this.x[0], this.x[1], Math.max(2, plotWidth / 90))) {
        const text = shape("text", {x: this.px(value), y: height - 7, "text-anchor": "middle"});
        text.textContent = short(value, 4);
        svg.append(text);
      }
      for (const index of runs.keys()) {
        if (weight > 0) this.drawLine(this.points[index], index, "curve raw");
        this.drawLine(this.lines[index], index, "curve");
        this.drawMarks(index);
      }
      this.cross = shape("line", {class: "cross", y1: margin.top, y2: bottom, visibility: "hidden"});
      svg.append(this.cross);
      this.heads = runs.map((_, index) => {
        const head = shape("circle", {r: 3.5, fill: color(index), visibility: "hidden"});
        svg.append(head);
        return head;
      });
      this.read(null);
    }

    drawable(point) { return point.y !== null && (!this.log || point.y > 0); }

    // A gap where a value was not finite.
    drawLine(points, index, className) {
      let path = "", open = false;
      for (const point of points) {
        if (!this.drawable(point)) { open = false; continue; }
        path += `${open ? "L" : "M"}${this.px(point.x).toFixed(1)} ${this.py(point.y).toFixed(1)}`;
        open = true;
      }
      if (path) {
        this.svg.append(shape("path", {d: path, class: className, stroke: color(index), "stroke-dasharray": dashes(index)}));
      }
    }

    drawMarks(index) {
      const points = this.points[index];
      const few = points.length <= (this.definition.dots ? 60 : 1);
      for (const point of points) {
        if (point.y === null) {
          const x = this.px(point.x);
          const mark = shape("path", {d: `M${x - 4} ${margin.top}h8l-4 7z`, class: "lost"});
          const title = shape("title", {});
          title.textContent = `not finite at step ${point.step}`;
          mark.append(title);
          this.svg.append(mark);
        } else if (few && this.drawable(point)) {
          this.svg.append(shape("circle", {cx: this.px(point.x), cy: this.py(point.y), r: 2.4, fill: color(index)}));
        }
      }
    }

    // The values at x, or (null) the last ones.
    read(at) {
      this.readout.replaceChildren();
      this.cross.setAttribute("visibility", at === null ? "hidden" : "visible");
      if (at !== null) {
        this.cross.setAttribute("x1", this.px(at));
        this.cross.setAttribute("x2", this.px(at));
      }
      this.where.textContent = at === null ? "last" : `${controls.axis.value} ${short(Math.round(at), 5)}`;
      for (const index of runs.keys()) {
        const raw = this.points[index];
        this.heads[index].setAttribute("visibility", "hidden");
        if (raw.length === 0) continue;
        const i = at === null ? raw.length - 1 : nearest(raw, at);
        const line = this.lines[index][i];
        const item = element("span", undefined, raw[i].y === null ? "bad" : "");
        item.append(swatch(index), raw[i].y === null ? "not finite" : shown(this.definition, line.y));
        item.title = runs[index].name;
        this.readout.append(item);
        if (at !== null && this.drawable(line)) {
          this.heads[index].setAttribute("visibility", "visible");
          this.heads[index].setAttribute("cx", this.px(line.x));
          this.heads[index].setAttribute("cy", this.py(line.y));
        }
      }
    }
  }

  // Index of the point whose x is closest; x does not fall.
  const nearest = (points, at) => {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle].x < at) low = middle + 1; else high = middle;
    }
    return low > 0 && at - points[low - 1].x < points[low].x - at ? low - 1 : low;
  };

  const panels = definitions.filter(panel => runs.some(run => (run.curves[panel.key] || {steps: []}).steps.length > 0))
      .map(definition => new Panel(definition));
  const draw = () => panels.forEach(panel => panel.draw());

  const list = document.getElementById("runs");
  runs.forEach((run, index) => {
    const button = element("button");
    button.append(swatch(index), run.name);
    button.title = "Show or hide " + run.name;
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(index)) hidden.add(index);
      button.setAttribute("aria-pressed", String(!hidden.has(index)));
      draw();
    });
    list.append(button);
  });
  for (const place of document.querySelectorAll("i.swatch[data-run]")) place.style.background = color(Number(place.dataset.run));
  if (!runs.some(run => run.curves.tokens)) controls.axis.parentElement.hidden = true;
  controls.axis.addEventListener("input", draw);
  controls.smoothing.addEventListener("input", draw);
  document.getElementById("controls").hidden = false;

  const place = document.getElementById("panels");
  place.append(...panels.map(panel => panel.root));
  if (panels.length === 0) place.append(element("p", "No steps were logged."));
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth === width) return;
    width = place.clientWidth;
    draw();
  }).observe(place);
})();
