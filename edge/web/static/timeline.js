// A plot of the last minutes: a band for the corruption, lines for severity and α, and where nothing came.

const HATCH = "M0 8 6 2M5 12 15 2M12 12 16 8";
const LINES = { severity: ["dirty", "M0 6H16", ""], alpha: ["patch", "M0 6H16", "5 3"], change: ["patch", "M8 2V10", ""], gap: ["gap", HATCH, ""], lost: ["bad", HATCH, ""] };
const HOUR = 3600; // seconds that are kept
const [SHORTEST, LONGEST] = [60, 300]; // seconds that are shown; the last hour if asked for
const QUIET = 3; // seconds without a frame that do not count as a gap: some sources are slow
const [LEFT, RIGHT, TOP, BAND, SPACE, FOOT] = [18, 42, 4, 18, 8, 20];

export const name = (key) => key.replaceAll("_", " ");

export class Timeline {
  constructor(canvas, readout, legend) {
    this.canvas = canvas;
    this.readout = readout;
    this.legend = legend;
    this.families = {}; // name → corruptions
    this.moments = new Map(); // start in seconds → moment
    this.now = 0;
    this.cursor = null; // seconds before now
    this.longest = LONGEST;
    canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerdown", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("blur", () => this.point(null));
    canvas.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  setFamilies(families) {
    this.families = families;
    const kinds = [["none", "clean"], ...Object.keys(families).map((family) => [family, family]), ["extra", "other"],
      ["severity", "severity"], ["alpha", "α, all signatures"], ["change", "the patch changed"], ["gap", "no frames"], ["lost", "source lost"]];
    this.legend.replaceChildren(...kinds.map(([kind, text]) => {
      const item = document.createElement("li");
      item.append(swatch(kind), text);
      return item;
    }));
  }

  /** The family of a corruption; `none` for clean, `extra` for one that is not known. */
  familyOf(corruption) {
    if (corruption === "clean") return "none";
    return Object.keys(this.families).find((family) => this.families[family].includes(corruption)) ?? "extra";
  }

  clear() {
    this.moments.clear();
  }

  /** Show the last hour, or the last minutes again; return whether it is the hour. */
  switchRange() {
    this.longest = this.longest === HOUR ? LONGEST : HOUR;
    this.cursor = null;
    this.draw();
    return this.longest === HOUR;
  }

  /** Take the moments of a report; one that was there already is newer now. */
  add(report) {
    this.now = report.uptime_s;
    for (const moment of report.timeline) this.moments.set(moment.at, moment);
    for (const at of this.moments.keys()) if (at < this.now - HOUR - 1) this.moments.delete(at);
  }

  /** Stretches of time: a corruption, `gap` or `lost`. */
  stretches() {
    const found = [];
    let end = null;
    for (const moment of this.moments.values()) {
      if (moment.at + moment.seconds < this.now - this.span) continue;
      if (end !== null && moment.at > end) {
        if (moment.at - end <= QUIET) found.at(-1).to = moment.at;
        else found.push({ from: end, to: moment.at, kind: "gap" });
      }
      end = moment.at + moment.seconds;
      const kind = moment.lost ? "lost" : moment.corruption;
      found.push({ from: moment.at, to: Math.min(end, Math.max(this.now, moment.at)), kind, moment });
    }
    if (end !== null && this.now - end > QUIET) found.push({ from: end, to: this.now, kind: "gap" });
    return found;
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !this.moments.size) return;
    const ratio = window.devicePixelRatio;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const colour = this.colours();
    const plot = { top: TOP + BAND + SPACE, bottom: height - FOOT };
    this.span = Math.min(this.longest, Math.max(SHORTEST, Math.ceil(this.now / 60) * 60));
    this.x = (at) => LEFT + ((at - this.now + this.span) / this.span) * (width - LEFT - RIGHT);

    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    this.grid(pen, colour, plot, width);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT - RIGHT, height);
    pen.clip();
    const stretches = this.stretches();
    for (const { from, to, kind } of stretches) {
      const [x0, x1] = [this.x(from), this.x(to)];
      if (kind === "gap" || kind === "lost") {
        hatch(pen, x0, TOP, x1 - x0, plot.bottom - TOP, colour(kind === "lost" ? "bad" : "gap"), kind === "lost");
      } else {
        pen.fillStyle = colour(this.familyOf(kind));
        pen.fillRect(x0, TOP, x1 - x0 + 0.5, BAND);
      }
    }
    pen.fillStyle = colour("patch");
    for (const { from, to, moment } of stretches) {
      if (moment?.changes) pen.fillRect(this.x((from + to) / 2) - 1, TOP + BAND + 1, 2, SPACE - 2);
    }
    const most = Math.max(1, ...[...this.moments.values()].map((moment) => moment.alpha));
    this.line(pen, stretches, colour("dirty"), [], (moment) => moment.severity / 5, plot);
    this.line(pen, stretches, colour("patch"), [5, 3], (moment) => moment.alpha / most, plot);
    pen.restore();
    pen.fillStyle = colour("patch");
    pen.textAlign = "left";
    pen.fillText(`α ${Number(most.toFixed(2))}`, width - RIGHT + 5, plot.top + 8);
    this.read(pen, colour, plot, stretches);
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    return (key) => style.getPropertyValue(`--${key}`);
  }

  grid(pen, colour, { top, bottom }, width) {
    pen.lineWidth = 1;
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("muted");
    pen.textAlign = "right";
    for (const severity of [0, 5]) {
      const y = Math.round(bottom - (severity / 5) * (bottom - top)) + 0.5;
      pen.beginPath();
      pen.moveTo(LEFT, y);
      pen.lineTo(width - RIGHT, y);
      pen.stroke();
      pen.fillText(severity, LEFT - 6, y + (severity ? 8 : 0));
    }
    const step = this.span > LONGEST ? 600 : this.span > 60 ? 60 : 15;
    for (let ago = 0; ago <= this.span; ago += step) {
      const text = ago === 0 ? "now" : step >= 60 ? `−${ago / 60} min` : `−${ago} s`;
      const x = this.x(this.now - ago);
      pen.textAlign = ago === this.span ? "left" : "center";
      pen.fillText(text, ago === this.span ? 0 : x, bottom + 15);
    }
  }

  line(pen, stretches, colour, dashes, share, { top, bottom }) {
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    pen.setLineDash(dashes);
    pen.beginPath();
    let drawing = false;
    for (const { from, to, moment, kind } of stretches) {
      const seen = moment && kind !== "lost";
      if (seen) {
        const y = bottom - Math.min(share(moment), 1) * (bottom - top);
        if (!drawing) pen.moveTo(this.x(from), y);
        pen.lineTo(this.x((from + to) / 2), y);
      }
      drawing = seen;
    }
    pen.stroke();
    pen.setLineDash([]);
  }

  // ---- the moment under the pointer, or chosen with the arrow keys

  point(x) {
    if (x === null) this.cursor = null;
    else if (this.x) {
      const width = this.canvas.clientWidth - LEFT - RIGHT;
      this.cursor = Math.min(Math.max((1 - (x - LEFT) / width) * this.span, 0), this.span);
    }
    this.draw();
  }

  press(event) {
    const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
    if (!step || !this.span) return;
    event.preventDefault();
    this.cursor = Math.min(Math.max((this.cursor ?? 0) + step * (event.shiftKey ? 10 : 1) * Math.max(1, this.span / LONGEST), 0), this.span);
    this.draw();
  }

  read(pen, colour, { bottom }, stretches) {
    const at = this.now - (this.cursor ?? 0);
    const found = stretches.findLast(({ from }) => from <= at);
    const text = found && at <= found.to + 1 ? describe(found) : "nothing yet";
    const summary = `Timeline of the last ${Math.round(this.span / 60)} min`;
    this.canvas.ariaLabel = summary;
    if (this.cursor === null) {
      this.readout.textContent = "";
      return;
    }
    this.readout.textContent = `${Math.round(this.cursor)} s ago: ${text}`;
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(this.x(at), TOP);
    pen.lineTo(this.x(at), bottom);
    pen.stroke();
  }
}

/** A patch of a colour, line or hatch as the timeline has it, for a legend. */
export function swatch(kind) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 12");
  svg.ariaHidden = "true";
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const [key, shape, dashes] = LINES[kind] ?? [kind, "M0 6H16", ""];
  path.setAttribute("d", shape);
  path.style.stroke = `var(--${key})`;
  path.style.strokeWidth = kind in LINES ? 2 : 12;
  path.style.strokeDasharray = dashes;
  svg.append(path);
  return svg;
}

function describe({ kind, moment }) {
  if (kind === "lost") return "source lost";
  if (kind === "gap") return "no frames";
  const { severity, mix, changes, label, frames } = moment;
  const patch = Object.entries(mix).map(([key, alpha]) => `${name(key)} α ${alpha.toFixed(2)}`).join(" + ") || "no patch";
  const changed = changes ? `, the patch changed ${changes === 1 ? "once" : `${changes} times`}` : "";
  return `${name(kind)}, severity ${severity?.toFixed(1)}, ${patch}${changed}, ${label}, ${frames} results`;
}

function hatch(pen, x, y, width, height, colour, dense) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, width, height);
  pen.clip();
  pen.strokeStyle = colour;
  pen.lineWidth = dense ? 2 : 1;
  pen.beginPath();
  const step = dense ? 7 : 9;
  for (let at = Math.floor((x - height) / step) * step; at < x + width; at += step) {
    pen.moveTo(at, y + height);
    pen.lineTo(at + height, y);
  }
  pen.stroke();
  pen.restore();
}
