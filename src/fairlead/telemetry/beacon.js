// Fairlead's beacon: what a person in front of the page had to wait for.
//
//   <script async src="/beacon" data-page="/feed/{user}"></script>
//
// One report a page view, when the page is first hidden: LCP, CLS, INP, TTFB, scroll latency; and script errors as they come.
// Each item lies in localStorage until the server has confirmed it, one key each, so that tabs do not overwrite one another.
// Served without comments and indentation: each statement ends with a semicolon, and no string crosses a line.
(() => {
  const tag = document.currentScript, P = "fairlead.", DAY = 864e5, MOST = 50;
  if (!tag || !window.PerformanceObserver || !window.fetch) return;
  const to = tag.src, page = tag.dataset.page || "", key = tag.dataset.key, variant = tag.dataset.variant;
  const view = [...crypto.getRandomValues(new Uint8Array(8))].map(b => b.toString(16).padStart(2, "0")).join("");
  const memory = {};
  let store = memory;
  try { localStorage.setItem(P, ""); localStorage.removeItem(P); store = localStorage; } catch (e) {}
  let n = 0, done = 0, busy = 0, pause = 1e3;

  // The queue: at most 50 items and a day; the oldest go first.
  const waiting = () => Object.keys(store).filter(k => k.startsWith(P)).map(k => {
    try { const item = JSON.parse(store[k]); if (Date.now() - item.at < DAY) return [k, item]; } catch (e) {}
    delete store[k];
  }).filter(x => x).sort((a, b) => a[1].at - b[1].at);
  const put = (item, now) => {
    const text = JSON.stringify({view, n: ++n, at: Date.now(), page, key, variant, ...item}), name = P + view + n;
    try { store[name] = text; } catch (e) { memory[name] = text; store = memory; }
    waiting().slice(0, -MOST).forEach(([k]) => delete store[k]);
    send(now);
  };
  const send = now => {
    const all = waiting();
    if (busy && now !== 1 || !all.length) return;
    busy = 1;
    fetch(to, {method: "POST", keepalive: true, credentials: "omit", body: JSON.stringify({sent: Date.now(), items: all.map(x => x[1])})})
      .then(answer => {
        // What the server calls wrong it has put aside; everything else that is no success is tried again.
        if (!answer.ok && ![400, 403, 413].includes(answer.status)) throw 0;
        all.forEach(([k]) => delete store[k]);
        busy = 0; pause = 1e3; send();
      })
      .catch(() => { busy = 0; setTimeout(send, pause = Math.min(6e4, pause * 2)); });
  };

  // What the browser measures.
  const watched = [];
  const watch = (type, take, more) => {
    try {
      const seen = new PerformanceObserver(list => list.getEntries().forEach(take));
      seen.observe({type, buffered: true, ...more});
      watched.push(() => seen.takeRecords().forEach(take));
    } catch (e) {}
  };
  const measures = type => (PerformanceObserver.supportedEntryTypes || []).includes(type);
  let lcp, cls = measures("layout-shift") ? 0 : undefined, sum = 0, first, last;
  const taps = {}, scrolls = [];
  watch("largest-contentful-paint", e => lcp = e.startTime);
  watch("layout-shift", e => {
    if (e.hadRecentInput) return;
    if (!sum || e.startTime - last >= 1e3 || e.startTime - first >= 5e3) { first = e.startTime; sum = 0; }
    last = e.startTime;
    cls = Math.max(cls, sum += e.value);
  });
  const tap = e => { if (e.interactionId) taps[e.interactionId] = Math.max(taps[e.interactionId] || 0, e.duration); };
  watch("event", tap, {durationThreshold: 16});
  watch("first-input", tap);

  // From the input to the end of the frame in which the page has scrolled. An input that scrolled nothing, at the end of
  // the page, must not be taken for the beginning of a later scroll.
  let input, heard;
  const on = (type, take) => addEventListener(type, take, {capture: true, passive: true});
  ["wheel", "touchmove"].forEach(type => on(type, e => { input = input && performance.now() - heard < 500 ? input : e.timeStamp; heard = performance.now(); }));
  on("scroll", () => {
    const began = performance.now() - heard < 500 && input;
    input = 0;
    if (began && scrolls.length < 1e3) requestAnimationFrame(() => setTimeout(() => scrolls.push(performance.now() - began)));
  });

  // The worst, leaving out one in fifty.
  const worst = list => list.sort((a, b) => b - a)[Math.floor(list.length / 50)];
  const report = () => {
    if (done++) return;
    watched.forEach(flush => flush());
    const nav = performance.getEntriesByType("navigation")[0] || {}, zero = nav.activationStart || 0;
    const since = t => t && Math.max(0, t - zero);
    put({kind: "page", lcp: since(lcp), ttfb: since(nav.responseStart), cls, inp: worst(Object.values(taps)), scroll: worst(scrolls), nav: nav.type}, 1);
  };
  addEventListener("visibilitychange", () => { if (document.visibilityState === "hidden") report(); });
  addEventListener("pagehide", report);

  const failed = (type, error, where) => {
    if (n < 20) put({kind: "error", type, name: String(error && error.name || ""), message: String(error && error.message || error).slice(0, 500), where});
  };
  addEventListener("error", e => failed("error", e.error || e.message, (e.filename || "").split(/[?#]/)[0] + ":" + e.lineno));
  addEventListener("unhandledrejection", e => failed("rejection", e.reason, ""));
  addEventListener("online", send);
  send();
})();
