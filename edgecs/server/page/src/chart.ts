/** The live chart: tokens per second, and the share of drafted tokens accepted. */

import { h, svg } from "./dom.js";
import type { Sample, TokenDetail } from "./types.js";

const WIDTH = 252;
const HEIGHT = 64;
const WINDOW = 1; // seconds that a point describes
const MOST = 160; // points that are kept

interface Arrival {
  seconds: number;
  tokens: number;
  tested: number;
  accepted: number;
}

/** Turns the arrival of rounds into points of the chart. */
export class Meter {
  samples: Sample[] = [];
  private readonly arrivals: Arrival[] = [];
  private began: number | null = null;
  private next = 0.2; // seconds at which the next point is due
  private step = 0.2;

  /** A round has arrived; now: milliseconds. Whether there is a new point. */
  add(tokens: readonly TokenDetail[], now: number): boolean {
    if (!tokens.length) return false;
    if (this.began === null) {
      this.began = now; // the first token came with the prompt
      return false;
    }
    const seconds = (now - this.began) / 1000;
    const accepted = tokens.filter((token) => token.source !== "target").length;
    const tested = (tokens[0]?.width ?? 1) - 1;
    this.arrivals.push({ seconds, tokens: tokens.length, tested, accepted });
    if (seconds < this.next) return false;
    this.next = seconds + this.step;
    this.samples.push(this.point(seconds));
    if (this.samples.length >= MOST) this.thin();
    return true;
  }

  private point(seconds: number): Sample {
    const from = Math.max(0, seconds - WINDOW);
    while (this.arrivals.length && this.arrivals[0]!.seconds <= from && from > 0) {
      this.arrivals.shift();
    }
    const sum = (name: "tokens" | "tested" | "accepted"): number =>
      this.arrivals.reduce((total, arrival) => total + arrival[name], 0);
    return {
      seconds,
      rate: sum("tokens") / Math.max(seconds - from, 1e-3),
      acceptance: sum("tested") ? sum("accepted") / sum("tested") : null,
    };
  }

  /** Every second point is enough for a long answer. */
  private thin(): void {
    this.samples = this.samples.filter((_, i) => i % 2);
    this.step *= 2;
  }
}

/** Both curves of an answer. */
export function chart(samples: readonly Sample[]): HTMLElement {
  const rates = samples.map((sample) => sample.rate);
  const top = Math.max(10, ...rates) * 1.1;
  const tested = samples.filter((sample) => sample.acceptance !== null);
  return h(
    "div",
    { class: "chart" },
    curve("Tokens per second", samples, (sample) => sample.rate / top, shownRate),
    curve(
      "Drafted tokens accepted",
      tested,
      (sample) => sample.acceptance ?? 0,
      (sample) => `${Math.round(100 * (sample.acceptance ?? 0))} %`,
    ),
  );
}

function shownRate(sample: Sample): string {
  return sample.rate.toFixed(sample.rate < 10 ? 1 : 0);
}

function curve(
  name: string,
  samples: readonly Sample[],
  height: (sample: Sample) => number,
  shown: (sample: Sample) => string,
): HTMLElement {
  const last = samples.at(-1);
  const end = last?.seconds ?? 1;
  const points = samples.map((sample) => {
    const x = (WIDTH * sample.seconds) / end;
    return `${x.toFixed(1)},${(HEIGHT - 2 - (HEIGHT - 4) * height(sample)).toFixed(1)}`;
  });
  const first = ((samples[0]?.seconds ?? 0) * WIDTH) / end;
  const label = last ? `${name}: ${shown(last)} after ${end.toFixed(1)} s` : `${name}: none`;
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }),
  );
  if (points.length > 1) {
    const area = `${first.toFixed(1)},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`;
    picture.append(svg("polygon", { class: "area", points: area }));
    picture.append(svg("polyline", { class: "line", points: points.join(" ") }));
  }
  return h(
    "figure",
    { class: "curve" },
    h(
      "figcaption",
      {},
      h("span", {}, name),
      h("span", { class: "value" }, last ? shown(last) : "–"),
    ),
    picture as unknown as HTMLElement,
  );
}
