// The two live charts, throughput and loss, over the steps. They share one cursor.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { generationMarks } from "./chart-marks.js";
import { byId, setText } from "./dom.js";
import { count, loss, numGroups, rate } from "./format.js";

const HEIGHT = 230;

export class Charts {
  #model = null;
  #plots;
  #colours = readColours();

  constructor() {
    const sync = uPlot.sync("steps");
    this.#plots = [
      this.#build("rate", sync, {
        label: (value) => `${rate(value)} tokens/s`,
        tick: (value) => rate(value),
        // From zero: half the height is half the speed.
        range: (low, high) => [0, (high || 1) * 1.18],
      }),
      this.#build("loss", sync, {
        label: (value) => `loss ${loss(value)}`,
        tick: (value) => String(Number(value.toPrecision(4))),
        range: (low, high) => {
          // More room above than below: the generations' numbers stand there.
          const span = high - low || Math.abs(high) || 1;
          return [low - 0.08 * span, high + 0.16 * span];
        },
      }),
    ];
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#colours = readColours();
      for (const { plot } of this.#plots) plot.redraw(false);
    });
  }

  /** Draw the model's series; call it at most once a frame. */
  draw(model) {
    this.#model = model;
    const { series } = model;
    for (const { name, plot, fit } of this.#plots) {
      fit();
      plot.setData([series.step, series[name]]);
      this.#readOut(name, plot);
    }
  }

  #build(name, sync, { label, tick, range }) {
    const box = byId(`${name}-chart`);
    const axis = (extra) => ({
      stroke: () => this.#colours.ink,
      grid: { stroke: () => this.#colours.grid, width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
      ...extra,
    });
    const options = {
      width: box.clientWidth || 400,
      height: HEIGHT,
      padding: [6, 8, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: sync.key }, y: false, drag: { setScale: false, x: false, y: false } },
      scales: {
        x: { time: false, range: (_, low, high) => [low ?? 0, Math.max(high ?? 1, (low ?? 0) + 1)] },
        y: { range: (_, low, high) => (low === null ? [0, 1] : range(low, high)) },
      },
      axes: [
        axis({ grid: { show: false }, size: 26, values: (_, at) => at.map((step) => (Number.isInteger(step) ? count(step) : "")) }),
        axis({ size: 52, values: (_, at) => at.map(tick) }),
      ],
      series: [
        {},
        {
          stroke: () => this.#colours[name],
          fill: name === "rate" ? () => this.#colours.rateFill : undefined,
          width: 1.6,
          points: { show: (plot) => plot.data[0].length === 1 },
        },
      ],
      plugins: [
        generationMarks(() => this.#model?.marks ?? [], () => this.#colours),
        { hooks: { setCursor: (plot) => this.#readOut(name, plot) } },
      ],
    };
    const plot = new uPlot(options, [[], []], box);
    plot.readOutLabel = label;
    // The chart is built while its card is hidden; its width is taken when it is seen.
    const fit = () => {
      const width = box.clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    };
    new ResizeObserver(fit).observe(box);
    return { name, plot, fit };
  }

  /** The values under the cursor, or those of the last step. */
  #readOut(name, plot) {
    const { series } = this.#model ?? { series: null };
    if (!series) return;
    const index = plot.cursor.idx ?? series.step.length - 1;
    const words =
      series.step[index] === undefined
        ? "no step yet"
        : [
            `step ${count(series.step[index])}`,
            plot.readOutLabel(series[name][index]),
            numGroups(series.groups[index]),
          ].join(" · ");
    setText(byId(`${name}-readout`), words);
  }
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return {
    ink: of("--ink-quiet"),
    grid: of("--line"),
    line: of("--mark"),
    rate: of("--rate"),
    rateFill: `${of("--rate")}1c`,
    loss: of("--loss"),
  };
}
