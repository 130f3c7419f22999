// Draws the plots of the report from the JSON in the page, again whenever a control or the colour scheme changes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const control = (id) => document.getElementById(id);
const checkboxes = [...document.querySelectorAll("input.run")];
const COLORS = 8;
const DASHES = ["solid", "dash", "dot"]; // tell runs apart that share a colour
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"];
const FONT = "system-ui, sans-serif";
const BAR = 22; // pixels
const LINE = 18; // pixels of a line of text
const LABEL = 45; // pixels that the sequence length of a stage needs

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const shown = () => checkboxes.filter((box) => box.checked).map((box) => Number(box.value));
const color = (index) => css(`run-${index % COLORS}`);
const dash = (index) => DASHES[Math.floor(index / COLORS) % DASHES.length];

// What Plotly shows of a point beside x and y.
const details = (points) =>
  points.step.map((step, i) => [
    step, points.tokens[i], points.bytes[i], points.training_seconds[i], points.stage?.[i], points.seq_len?.[i],
  ]);
for (const run of data.runs) {
  run.moments.details = details(run.moments);
  run.steps.details = details(run.steps);
}

const HOVER =
  "<b>%{fullData.name}</b><br>bits per byte %{y:.4f}, WHAT<br>step %{customdata[0]:,}<br>" +
  "%{customdata[1]:,} tokens<br>%{customdata[2]:,} bytes<br>%{customdata[3]:,.1f} s of training";
const HOVER_EVALUATION = `${HOVER.replace("WHAT", "held-out")}<extra></extra>`;
const HOVER_STEP =
  `${HOVER.replace("WHAT", "training")}<br>stage %{customdata[4]}, length %{customdata[5]}<extra></extra>`;

function layout(x, y, more) {
  const [text, line, background] = [css("text"), css("line"), css("background")];
  const axis = (own) => ({
    gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, exponentformat: "SI",
    ...own, title: { text: own.title, standoff: 10 },
  });
  return {
    paper_bgcolor: background,
    plot_bgcolor: background,
    font: { color: text, family: FONT, size: 13 },
    margin: { l: 55, r: 15, t: 35, b: 50 },
    hovermode: "closest",
    hoverlabel: { bgcolor: background, bordercolor: css("muted"), font: { color: text, family: FONT }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("muted"), activecolor: text },
    showlegend: false,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger is to scroll the page
    xaxis: axis(x),
    yaxis: axis(y),
    ...more,
  };
}

function draw(id, traces, arrangement, toolbar = false) {
  const config = {
    responsive: true, displaylogo: false, displayModeBar: toolbar,
    showSendToCloud: false, plotlyServerURL: "", // nothing of the report leaves it
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };
  Plotly.react(id, traces, arrangement, config);
}

// An exponential moving average that owes nothing to where it began.
function smooth(values, memory) {
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = memory * sum + (1 - memory) * value;
    weight = memory * weight + (1 - memory);
    return sum / weight;
  });
}

function drawCurves() {
  const axis = control("axis").value;
  const [logX, logY] = [control("log-x").checked, control("log-y").checked];
  const memory = Number(control("smoothing").value);
  control("smoothed").value = memory.toFixed(2);
  const faint = shown().map((index) => ({
    ...curve(index, data.runs[index].steps, axis, HOVER_STEP),
    y: smooth(data.runs[index].steps.bits_per_byte, memory),
    mode: "lines",
    line: { color: color(index), width: 1 },
    opacity: 0.45,
  }));
  const evaluations = shown().map((index) => ({
    ...curve(index, data.runs[index].moments, axis, HOVER_EVALUATION),
    y: data.runs[index].moments.bits_per_byte,
    mode: "lines+markers",
    line: { color: color(index), dash: dash(index), width: 2 },
    marker: { color: color(index), symbol: SYMBOLS[index % SYMBOLS.length], size: 7 },
  }));
  const x = { title: data.axes[axis], type: logX ? "log" : "linear", rangemode: "tozero" };
  if (axis === "flops") x.exponentformat = "power";
  const y = { title: "bits per byte", type: logY ? "log" : "linear" };
  const more = { shapes: bands(axis, logX), uirevision: [axis, logX, logY].join() }; // or else the zoom is kept
  draw("curves", [...faint, ...evaluations], layout(x, y, more), true);
}

const curve = (index, points, axis, hovertemplate) => ({
  name: data.runs[index].label, x: points[axis], customdata: points.details, hovertemplate, type: "scatter",
});

// The stages of the chosen run, or of the only one that is shown, as a background.
function bands(axis, log) {
  const chosen = control("stages").value;
  const only = shown().length === 1 ? shown()[0] : undefined;
  const run = data.runs[chosen === "" ? only : Number(chosen)];
  if (!run || !run.stages.length) return [];
  const least = log ? run.steps[axis][0] : -Infinity; // a logarithmic axis has no zero
  const edges = run.stages.map(({ start, end }) => [Math.max(start[axis], least), end[axis]]);
  const scale = log ? Math.log10 : (value) => value;
  const whole = scale(edges.at(-1)[1]) - scale(edges[0][0]);
  return run.stages.map(({ seq_len }, i) => {
    const [x0, x1] = edges[i];
    const pixels = ((scale(x1) - scale(x0)) / whole) * control("curves").clientWidth;
    return {
      type: "rect", x0, x1, y0: 0, y1: 1, yref: "paper", layer: "below", line: { width: 0 },
      fillcolor: i % 2 ? "rgba(0,0,0,0)" : css("band"),
      label: {
        text: pixels > LABEL ? String(seq_len) : "", textposition: "top center",
        font: { color: css("muted"), size: 11 },
      },
    };
  });
}

function drawByLength(id, field, title, format) {
  if (!control(id)) return;
  const lengths = new Set(data.runs.flatMap((run) => run.stages.map((stage) => stage.seq_len)));
  const traces = shown().map((index) => ({
    name: data.runs[index].label,
    x: data.runs[index].stages.map((stage) => String(stage.seq_len)),
    y: data.runs[index].stages.map((stage) => stage[field]),
    customdata: data.runs[index].stages.map((stage) => stage.stage),
    hovertemplate: `<b>%{fullData.name}</b><br>stage %{customdata}, length %{x}<br>%{y:${format}}<extra></extra>`,
    mode: "lines+markers",
    line: { color: color(index), dash: dash(index) },
    marker: { color: color(index), symbol: SYMBOLS[index % SYMBOLS.length], size: 7 },
    connectgaps: true,
    type: "scatter",
  }));
  const categoryarray = [...lengths].sort((one, other) => one - other).map(String);
  const x = { title: "sequence length in tokens", type: "category", categoryorder: "array", categoryarray };
  const y = { title, rangemode: "tozero", tickformat: field === "mfu" ? ".0%" : undefined };
  draw(id, traces, layout(x, y));
}

function drawPositions() {
  if (!control("positions")) return;
  const traces = shown().map((index) => ({
    name: data.runs[index].label,
    x: data.runs[index].positions.map((part) => Number(part.name)),
    y: data.runs[index].positions.map((part) => part.bits_per_byte),
    customdata: data.runs[index].positions.map((part) => part.bytes),
    hovertemplate:
      "<b>%{fullData.name}</b><br>from %{x} tokens on<br>%{y:.4f} bits per byte of %{customdata:,} bytes<extra></extra>",
    mode: "lines+markers",
    line: { color: color(index), dash: dash(index) },
    marker: { color: color(index), symbol: SYMBOLS[index % SYMBOLS.length], size: 7 },
    type: "scatter",
  }));
  const x = { title: "tokens before, at least", type: "log", dtick: Math.log10(4) };
  draw("positions", traces, layout(x, { title: "bits per byte" }));
}

// Horizontal bars, each below its label; `bars` makes the traces from the properties that all of them have.
function drawBars(id, labels, bars, x, more) {
  const row = BAR + LINE * (1 + Math.max(0, ...labels.map((label) => label.split("<br>").length)));
  const width = BAR / row;
  const common = { type: "bar", orientation: "h", width, y: labels.map((_, place) => place) };
  const y = { range: [labels.length - 1 + width, width - 1], showticklabels: false, showgrid: false, zeroline: false };
  draw(id, bars.map((bar) => ({ ...common, ...bar })), layout(x, y, {
    height: 130 + row * labels.length,
    margin: { l: 10, r: 15, t: 35, b: 50 },
    dragmode: false,
    showlegend: true,
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" },
    annotations: labels.map((text, place) => ({
      text, x: 0, xref: "paper", xanchor: "left", align: "left",
      y: place, yanchor: "bottom", yshift: BAR / 2, showarrow: false,
    })),
    ...more,
  }));
}

function drawTimes() {
  const runs = shown().map((index) => data.runs[index]);
  const total = (run) => Object.values(run.times).reduce((sum, seconds) => sum + seconds, 0);
  const bars = Object.entries(data.parts).map(([part, name], i) => ({
    name,
    x: runs.map((run) => run.times[part]),
    customdata: runs.map((run) => [run.label, run.times[part] / total(run)]),
    hovertemplate: `<b>%{customdata[0]}</b><br>${name} %{x:,.1f} s, %{customdata[1]:.1%}<extra></extra>`,
    marker: { color: color(i) },
  }));
  drawBars("times", runs.map((run) => run.label), bars, { title: "seconds" }, { barmode: "stack" });
}

// What each choice was worth, as bars of learning and throughput end to end.
function drawWorth() {
  if (!control("worth")) return;
  const factors = data.worth;
  const reached = (part, bound = "ratio") => factors.map((factor) => factor.start * factor[part][bound]);
  const ends = reached("total");
  const beyond = (bound, sign) =>
    reached("total", bound).map((end, place) => (factors[place].total[bound] === null ? 0 : sign * (end - ends[place])));
  const bar = (name, part, base, paint, more) => ({
    name, base,
    x: factors.map((factor, place) => base[place] * (factor[part].ratio - 1)),
    customdata: factors.map((factor) => [factor.label, factor[part].ratio, factor.total.ratio, factor.sure]),
    hovertemplate:
      `<b>%{customdata[0]}</b><br>${name}: %{customdata[1]:.3g} times<br>` +
      "in all %{customdata[2]:.3g} times%{customdata[3]}<extra></extra>",
    marker: { color: paint },
    ...more,
  });
  const error_x = {
    type: "data", symmetric: false, color: css("text"), thickness: 1,
    array: beyond("high", 1), arrayminus: beyond("low", -1),
  };
  const bars = [
    bar("by learning", "learning", factors.map(({ start }) => start), color(0)),
    bar("by throughput", "throughput", reached("learning"), color(1), { error_x }),
  ];
  const labels = factors.map(({ label, total }) => `${label}: ${total.ratio.toPrecision(3)}`);
  const one = {
    type: "line", x0: 1, x1: 1, y0: 0, y1: 1, yref: "paper", layer: "below", line: { color: css("muted"), width: 1 },
  };
  const x = { title: "times as fast", type: "log", dtick: "D1" };
  drawBars("worth", labels, bars, x, { barmode: "overlay", shapes: [one] });
}

function drawAll() {
  drawWorth();
  drawCurves();
  drawByLength("speed", "bytes_per_second", "bytes per second", ".3s");
  drawByLength("utilization", "mfu", "MFU, share of the peak", ".1%");
  drawPositions();
  drawTimes();
}

for (const id of ["axis", "log-x", "log-y", "stages"]) control(id).addEventListener("change", drawCurves);
control("smoothing").addEventListener("input", drawCurves);
for (const box of checkboxes) box.addEventListener("change", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
