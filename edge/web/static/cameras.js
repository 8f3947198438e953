// All cameras of a run: a tile for each with its newest image, its state and its patch. Texts are foreign: textContent only.

import { Connection } from "./connection.js";
import { name } from "./timeline.js";

const QUIET_AFTER = 3; // seconds without a result after which what is shown is old
const REFRESH = 500; // milliseconds from one image of a camera to the next, at least
const LOADERS = 2; // images that are loaded at the same time: a browser has few connections

const $ = (id) => document.getElementById(id);
const tiles = new Map(); // name → tile
let ended = false;

$("sign-out").addEventListener("click", async () => {
  await fetch("signout", { method: "POST" }).catch(() => null);
  location.reload();
});

// ---- the images

/** Load the image that is oldest, repeatedly. */
async function load() {
  for (;;) {
    const now = performance.now();
    const [next] = [...tiles.values()].filter((tile) => !tile.loading).sort((a, b) => a.loadedAt - b.loadedAt);
    if (!connection.connected || document.hidden || !next || now - next.loadedAt < REFRESH) {
      await new Promise((resolve) => setTimeout(resolve, REFRESH / 5));
      continue;
    }
    next.loading = true;
    next.loadedAt = now;
    const answer = await fetch(`camera/${next.name}/tile.jpg`, { signal: AbortSignal.timeout(5e3) }).catch(() => null);
    if (answer?.ok) next.showImage(await answer.blob().catch(() => null));
    next.loading = false;
  }
}

class Tile {
  constructor(camera) {
    this.name = camera;
    this.loading = false;
    this.loadedAt = -Infinity;
    this.item = document.createElement("li");
    this.item.className = "tile";
    const link = this.part("a", this.item, "picture");
    link.href = `camera/${camera}/`;
    this.image = this.part("img", link);
    this.image.alt = "";
    this.note = this.part("span", link, "note");
    const head = this.part("h2", this.item);
    this.title = this.part("a", head);
    this.title.href = link.href;
    this.state = this.part("span", head, "pill");
    this.seen = this.part("p", this.item, "seen");
    const bar = this.part("div", this.item, "bar");
    bar.ariaHidden = "true";
    this.bar = this.part("i", bar);
    this.patch = this.part("p", this.item, "aside");
    this.facts = this.part("p", this.item, "aside");
    this.button = this.part("button", this.facts);
    this.button.addEventListener("click", () => this.pause());
    this.text = document.createTextNode("");
    this.facts.prepend(this.text);
  }

  part(tag, parent, kind = "") {
    const element = document.createElement(tag);
    element.className = kind;
    parent.append(element);
    return element;
  }

  async pause() {
    const paused = Number(this.camera.state !== "paused");
    await fetch(`camera/${this.name}/limits?paused=${paused}`, { method: "POST" }).catch(() => null);
  }

  showImage(blob) {
    if (!blob) return;
    const before = this.image.src;
    this.image.src = URL.createObjectURL(blob);
    if (before) URL.revokeObjectURL(before);
  }

  show(camera) {
    this.camera = camera;
    const [level, state] = condition(camera);
    const mix = Object.entries(camera.mix).map(([key, alpha]) => `${name(key)} ${alpha.toFixed(2)}`);
    const seen = camera.corruption === null ? "no frame yet" : camera.corruption === "clean" ? "clear"
      : `${name(camera.corruption)}, severity ${camera.severity.toFixed(1)}`;
    this.item.dataset.stale = level === "bad" || camera.state === "paused" ? "yes" : "";
    this.title.textContent = this.name;
    this.image.alt = `The newest frame of ${camera.source}`;
    this.state.textContent = state;
    this.state.dataset.level = level;
    this.note.textContent = camera.label === null ? "waiting for the first frame" : camera.label;
    this.seen.textContent = seen;
    this.seen.className = camera.corruption === "clean" ? "seen clean" : "seen";
    this.bar.style.width = `${(camera.severity ?? 0) * 20}%`;
    this.patch.textContent = mix.length ? `patch: ${mix.join(" + ")}` : "no patch";
    this.text.textContent = `${camera.fps.toFixed(1)} /s, dropped ${camera.dropped}, rejected ${camera.rejected}`;
    this.button.textContent = camera.state === "paused" ? "go on" : "pause";
    this.button.ariaLabel = `${this.button.textContent}: ${this.name}`;
    this.button.disabled = ended || !connection.connected;
  }
}

// ---- what is shown

function condition(camera) {
  if (camera.state === "paused") return ["wait", "paused"];
  if (camera.state === "reconnecting" || camera.state === "lost") return ["bad", "source lost"];
  if (camera.state === "ended") return ["wait", "ended"];
  if (camera.since_result_s === null) return ["wait", "starting"];
  if (camera.since_result_s > QUIET_AFTER) return ["bad", "no results"];
  return ["ok", "running"];
}

function show(next) {
  ended = Boolean(next.ended);
  $("version").textContent = next.version;
  $("sign-out").hidden = !next.sign_out;
  const names = new Set(next.cameras.map(({ camera }) => camera));
  for (const [key, tile] of tiles) {
    if (names.has(key)) continue;
    tile.item.remove();
    tiles.delete(key);
  }
  for (const camera of next.cameras) {
    if (!tiles.has(camera.camera)) {
      tiles.set(camera.camera, new Tile(camera.camera));
      $("cameras").append(tiles.get(camera.camera).item);
    }
    tiles.get(camera.camera).show(camera);
  }
  $("count").textContent = `${next.cameras.length} cameras`;
  speak(next.cameras);
  showState();
}

function showState() {
  const bad = [...tiles.values()].filter(({ camera }) => condition(camera)[0] === "bad").map((tile) => tile.name);
  const text = ended ? "The run has ended. What you see is its last state."
    : connection.refused ? "The device asks for its token again: open the link that rws run printed."
      : !connection.connected && tiles.size ? "No connection to the device. What you see is old; trying again." : "";
  $("banner").hidden = text === "";
  if ($("banner").textContent !== text) $("banner").textContent = text;
  $("banner").dataset.level = ended ? "wait" : "bad";
  const [level, pill] = ended ? ["wait", "ended"] : !connection.connected ? ["wait", "connecting"]
    : bad.length ? ["bad", `${bad.length} of ${tiles.size} without frames`] : ["ok", "all running"];
  $("state").dataset.level = level;
  $("state").textContent = pill;
  document.body.dataset.stale = connection.connected || !tiles.size ? "" : "all";
  document.title = bad.length ? `${bad.join(", ")}: no frames` : "rws";
}

/** Tell a screen reader which cameras have no frames, if that has changed. */
function speak(cameras) {
  const bad = cameras.filter((camera) => condition(camera)[0] === "bad").map(({ camera }) => camera);
  const news = bad.length ? `${bad.join(", ")}: no frames` : "all cameras running";
  if ($("spoken").textContent !== news) $("spoken").textContent = news;
}

const connection = new Connection(show, showState);
for (let number = 0; number < LOADERS; number += 1) load();
