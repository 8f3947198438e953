// The server-sent events of a page: opened again when they are lost, closed while the page is hidden.

const RETRY = 1500; // milliseconds
const SILENT_AFTER = 3; // seconds without an event after which the connection counts as lost
const LOOK = 500; // milliseconds

export class Connection {
  /** `show(event, first)` takes each event, `change()` is called when it was lost or refused, and regularly. */
  constructor(show, change) {
    this.show = show;
    this.change = change;
    this.connected = false;
    this.refused = false; // the page's token is not valid any more
    this.events = null;
    this.heardAt = performance.now();
    setInterval(() => {
      if (this.events !== null && performance.now() - this.heardAt > SILENT_AFTER * 1e3) this.lose();
      this.change();
    }, LOOK);
    document.addEventListener("visibilitychange", () => {
      this.close();
      if (!document.hidden) this.open();
    });
    if (!document.hidden) this.open();
  }

  open() {
    this.heardAt = performance.now();
    this.events = new EventSource("events");
    let first = true;
    this.events.onmessage = (event) => {
      this.heardAt = performance.now();
      this.connected = true;
      this.refused = false;
      this.show(JSON.parse(event.data), first);
      first = false;
    };
    this.events.onerror = () => this.lose();
  }

  close() {
    this.events?.close();
    this.events = null;
  }

  async lose() {
    this.close();
    this.connected = false;
    this.change();
    setTimeout(() => this.events === null && !document.hidden && this.open(), RETRY);
    const answer = await fetch("health", { signal: AbortSignal.timeout(RETRY) }).catch(() => null);
    this.refused = answer?.status === 401;
    this.change();
  }
}
