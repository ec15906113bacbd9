// The live charts over the steps: throughput, loss and goodput. They share one cursor.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { membershipMarks } from "./chart-marks.js";
import { byId, setText } from "./dom.js";
import { count, loss, numGroups, percent, rate } from "./format.js";
import { colourOf, onThemeChange } from "./theme.js";

const HEIGHT = 216;
const LANE = 26;
const FONT = '11px "Inter Variable", system-ui, sans-serif';

const CHARTS = [
  {
    name: "rate",
    title: "Throughput",
    label: (value) => `${rate(value)} tokens/s`,
    tick: rate,
    // From zero: half the height is half the speed.
    range: (low, high) => [0, (high || 1) * 1.1],
  },
  {
    name: "loss",
    title: "Loss",
    label: (value) => `loss ${loss(value)}`,
    tick: (value) => String(Number(value.toPrecision(4))),
    range: (low, high) => {
      const span = high - low || Math.abs(high) || 1;
      return [low - 0.08 * span, high + 0.08 * span];
    },
  },
  {
    name: "goodput",
    title: "Goodput",
    label: (value) => `${percent(value)} since the start`,
    tick: (value) => `${Math.round(100 * value)} %`,
    range: (low) => [Math.max(0, Math.min(0.8, Math.floor(low * 10) / 10)), 1.02],
  },
];

export class Charts {
  #model = null;
  #colours = readColours();
  #plots;

  constructor() {
    const sync = uPlot.sync("steps");
    this.#plots = CHARTS.map((chart) => this.#build(chart, sync));
    onThemeChange(() => {
      this.#colours = readColours();
      for (const { plot } of this.#plots) plot.redraw(false);
    });
  }

  /** Draw the model's series; call it at most once a frame. */
  draw(model) {
    this.#model = model;
    const { series } = model;
    for (const { chart, plot, fit } of this.#plots) {
      fit();
      plot.setData([series.step, series[chart.name]]);
      this.#readOut(chart, plot);
    }
  }

  #build(chart, sync) {
    const box = byId(`${chart.name}-chart`);
    const axis = (extra) => ({
      stroke: () => this.#colours.ink,
      grid: { stroke: () => this.#colours.grid, width: 1 },
      ticks: { show: false },
      font: FONT,
      ...extra,
    });
    const steps = (_, at) => at.map((step) => (Number.isInteger(step) ? count(step) : ""));
    const options = {
      width: box.clientWidth || 400,
      height: HEIGHT,
      padding: [LANE, 8, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: sync.key }, y: false, drag: { setScale: false, x: false, y: false } },
      scales: {
        x: { time: false, range: (_, low, high) => [low ?? 0, Math.max(high ?? 1, (low ?? 0) + 1)] },
        y: { range: (_, low, high) => (low === null ? [0, 1] : chart.range(low, high)) },
      },
      axes: [
        axis({ grid: { show: false }, size: 26, space: 60, values: steps }),
        axis({ size: 50, space: 34, values: (_, at) => at.map(chart.tick) }),
      ],
      series: [
        {},
        {
          stroke: () => this.#colours[chart.name],
          fill: chart.name === "rate" ? () => this.#colours.fill : undefined,
          width: 1.5,
          points: { show: (plot) => plot.data[0].length === 1 },
        },
      ],
      plugins: [
        membershipMarks(chart.title, () => this.#model?.changes ?? [], () => this.#colours),
        { hooks: { setCursor: (plot) => this.#readOut(chart, plot) } },
      ],
    };
    const plot = new uPlot(options, [[], []], box);
    // The chart is built while its card is hidden; its width is taken when it is seen.
    const fit = () => {
      const width = box.clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    };
    new ResizeObserver(fit).observe(box);
    return { chart, plot, fit };
  }

  /** The values under the cursor, or those of the last step. */
  #readOut({ name, label }, plot) {
    if (!this.#model) return;
    const { series } = this.#model;
    const index = plot.cursor.idx ?? series.step.length - 1;
    const step = series.step[index];
    const words = step === undefined ? ["no step yet"] : [`step ${count(step)}`, label(series[name][index])];
    if (step !== undefined && name === "rate") words.push(numGroups(series.groups[index]));
    setText(byId(`${name}-readout`), words.join(" · "));
  }
}

function readColours() {
  return {
    ink: colourOf("--ink-quiet"),
    grid: colourOf("--line"),
    mark: colourOf("--mark"),
    rate: colourOf("--rate"),
    fill: colourOf("--rate-fill"),
    loss: colourOf("--loss"),
    goodput: colourOf("--goodput"),
  };
}
