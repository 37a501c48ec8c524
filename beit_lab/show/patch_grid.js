/* One picture under a grid of patches: hide them, pick them, read them. Nothing is fetched; this file is all there is. */

const HEAT = [[0, 34, 78], [26, 56, 111], [67, 78, 108], [97, 101, 111], [125, 124, 120],   /* nine stops of matplotlib's cividis */
              [155, 148, 118], [188, 174, 108], [222, 201, 88], [254, 232, 56]];
const GREY = "#9a9a9a", STRIPE = "#cdcdcd", INK = "#1a1a1a", PICKED = "#D55E00", MARKED = "#E69F00";
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function heatColour(share, alpha) {
  const place = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1), low = Math.min(Math.floor(place), HEAT.length - 2);
  const mix = HEAT[low].map((a, k) => Math.round(a + (place - low) * (HEAT[low + 1][k] - a)));
  return `rgba(${mix.join(",")},${alpha})`;
}

function hatchTile() {                                   /* the sign for "hidden": mid-grey with fine diagonal lines, never black */
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const ctx = tile.getContext("2d");
  ctx.fillStyle = GREY; ctx.fillRect(0, 0, 6, 6);
  ctx.fillStyle = STRIPE;
  for (let k = 0; k < 6; k++) ctx.fillRect(k, (6 - k) % 6, 1, 1);
  return tile;
}

function element(kind, name, parent) {
  const made = document.createElement(kind);
  made.className = name;
  parent.append(made);
  return made;
}

function passes(event) {                                /* keys that go on to JupyterLab: saving, running, leaving */
  return event.ctrlKey || event.metaKey || event.altKey || ["Tab", "Escape"].includes(event.key) || (event.shiftKey && event.key === "Enter");
}

function render({ model, el }) {
  const root = element("div", "bl-grid", el), canvas = element("canvas", "bl-canvas", root);
  const caption = element("div", "bl-caption", root), live = element("div", "bl-live", root);
  const ctx = canvas.getContext("2d"), pattern = ctx.createPattern(hatchTile(), "repeat");
  const get = (name) => model.get(name), count = () => get("rows") * get("columns");
  let mask = get("mask").slice(), hover = -1, cursor = 0, keyboard = false, byHand = false, painting = null, last = -1;
  let bitmap = null, light = [], asked = 0;
  live.setAttribute("aria-live", "polite");

  /* ---- looks ---- */
  function box(i) {
    const w = get("width") / get("columns"), h = get("height") / get("rows");
    return [(i % get("columns")) * w, Math.floor(i / get("columns")) * h, w, h];
  }

  function ring(i, colour, thick) {                      /* dark, coloured, light: it shows on any picture; inside the patch, so that nothing cuts it off */
    const [x, y, w, h] = box(i), edge = (from, width, tone) => {
      ctx.lineWidth = width; ctx.strokeStyle = tone;
      ctx.strokeRect(x + from + width / 2, y + from + width / 2, w - 2 * from - width, h - 2 * from - width);
    };
    edge(0, 1, INK);
    edge(1, thick, colour);
    if (Math.min(w, h) > 4 * thick + 6) edge(thick + 1, 1, "#ffffff");
  }

  function lines() {
    ctx.strokeStyle = "rgba(128,128,128,.45)"; ctx.lineWidth = 1; ctx.beginPath();
    for (let c = 1; c < get("columns"); c++) { const x = Math.round(c * get("width") / get("columns")) + 0.5; ctx.moveTo(x, 0); ctx.lineTo(x, get("height")); }
    for (let r = 1; r < get("rows"); r++) { const y = Math.round(r * get("height") / get("rows")) + 0.5; ctx.moveTo(0, y); ctx.lineTo(get("width"), y); }
    ctx.stroke();
  }

  function words() {
    const labels = get("labels"), longest = Math.max(...labels.map((word) => word.length), 3);
    const [, , w, h] = box(0), size = Math.min(13, Math.floor(1.5 * w / longest), Math.floor(0.6 * h));
    if (!labels.length || size < 7) return;              /* a word that nobody can read is left out */
    ctx.font = `${size}px system-ui, sans-serif`; ctx.textAlign = "center"; ctx.textBaseline = "middle";
    labels.forEach((word, i) => {
      const [x, y] = box(i);
      ctx.fillStyle = mask[i] || (light[i] ?? 1) > 0.5 ? INK : "#ffffff";
      ctx.fillText(word, x + w / 2, y + h / 2 + 0.5);
    });
  }

  function draw() {
    const sharp = window.devicePixelRatio || 1, w = get("width"), h = get("height"), heat = get("heat");
    if (canvas.width !== Math.round(w * sharp) || canvas.height !== Math.round(h * sharp)) {
      canvas.width = Math.round(w * sharp); canvas.height = Math.round(h * sharp);
      canvas.style.width = `${w}px`; canvas.style.height = `${h}px`; root.style.width = `${w}px`;
    }
    ctx.setTransform(canvas.width / w, 0, 0, canvas.height / h, 0, 0);
    ctx.imageSmoothingEnabled = !!bitmap && bitmap.width > w; /* enlarged patches are seen as they are */
    ctx.clearRect(0, 0, w, h);
    if (bitmap) ctx.drawImage(bitmap, 0, 0, w, h);
    for (let i = 0; i < count(); i++) {
      if (mask[i]) { ctx.fillStyle = pattern; ctx.fillRect(...box(i)); }
      if (heat.length && heat[i] >= 0) { ctx.fillStyle = heatColour(heat[i], get("heat_alpha")); ctx.fillRect(...box(i)); }
    }
    if (get("lines")) lines();
    for (const i of get("outlined")) ring(i, MARKED, 2);
    if (get("locked") >= 0) ring(get("locked"), PICKED, 3);
    if (get("hover") >= 0) ring(get("hover"), "#ffffff", 1);
    if (keyboard) ring(cursor, "#ffffff", 2);
    words();
    canvas.classList.toggle("bl-keyboard", keyboard);
    Object.assign(canvas.dataset, { hidden: hiddenCount(), cursor, hover: get("hover"), locked: get("locked") });
  }

  function measure() {                                   /* how light each patch is, for the ink of its word (luma of ITU-R BT.601) */
    const small = document.createElement("canvas");
    small.width = get("columns"); small.height = get("rows");
    const pen = small.getContext("2d", { willReadFrequently: true });
    pen.drawImage(bitmap, 0, 0, small.width, small.height);
    const bytes = pen.getImageData(0, 0, small.width, small.height).data;
    light = Array.from({ length: count() }, (_, i) => (0.299 * bytes[4 * i] + 0.587 * bytes[4 * i + 1] + 0.114 * bytes[4 * i + 2]) / 255);
  }

  async function picture() {
    const bytes = get("image"), turn = ++asked;
    if (!bytes || !bytes.byteLength) { bitmap = null; draw(); return; }
    const next = await createImageBitmap(new Blob([bytes], { type: "image/png" })).catch(() => null);
    if (turn !== asked) { next?.close(); return; }       /* a newer picture has come meanwhile */
    bitmap?.close(); bitmap = next;
    if (bitmap && get("labels").length) measure();
    draw();
    canvas.dataset.pictures = turn;
  }

  function dress() {
    const mode = get("mode"), act = mode === "paint" ? "space hides or shows a patch, with shift the arrows paint" : "space picks a patch, escape lets go";
    caption.textContent = get("caption"); caption.hidden = !get("caption");
    canvas.dataset.mode = mode;
    canvas.tabIndex = mode === "view" ? -1 : 0;
    canvas.setAttribute("role", mode === "view" ? "img" : "application");
    canvas.setAttribute("aria-roledescription", "grid of patches");
    canvas.setAttribute("aria-label", get("name") + (mode === "view" ? "" : `, ${get("rows")} by ${get("columns")} patches: arrow keys move, ${act}`));
    draw();
  }

  /* ---- state: traits only, drawn here first and told to Python second ---- */
  const hiddenCount = () => mask.reduce((sum, bit) => sum + (bit ? 1 : 0), 0);
  const columnsOf = (i) => `row ${Math.floor(i / get("columns")) + 1}, column ${i % get("columns") + 1}`;

  function tell(i) {
    const state = get("mode") === "paint" ? (mask[i] ? ": hidden" : ": visible") : i === get("locked") ? ": picked" : "";
    const total = get("mode") === "paint" ? `; ${hiddenCount()} of ${count()} hidden` : "";
    const detail = get("details")[i] ? `; ${get("details")[i]}` : "";
    live.textContent = columnsOf(i) + state + total + detail;
  }

  function point(i) {
    if (i === hover && i === get("hover")) return;
    hover = i; model.set("hover", i); draw(); model.save_changes();
  }

  function paint(i, hide) {
    if (i < 0 || i >= count() || !!mask[i] === hide) return;
    mask[i] = hide; draw();
    model.set("mask", mask.slice()); model.save_changes();
    tell(i);
  }

  function paintTo(i, hide) {                            /* every patch on the way, however fast the pointer */
    const wide = get("columns"), from = [Math.floor(last / wide), last % wide], to = [Math.floor(i / wide), i % wide];
    const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1);
    for (let k = 1; k <= steps; k++)
      paint(Math.round(from[0] + k / steps * (to[0] - from[0])) * wide + Math.round(from[1] + k / steps * (to[1] - from[1])), hide);
    last = i;
  }

  function pick(i) {
    const free = get("mode") === "pick" && i >= 0 && i < count();
    if (!free) return;
    model.set("locked", i === get("locked") ? -1 : i);
    draw(); model.save_changes(); tell(i);
  }

  /* ---- hand ---- */
  function at(event) {
    const place = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - place.left) / place.width * get("columns"));
    const row = Math.floor((event.clientY - place.top) / place.height * get("rows"));
    return column < 0 || row < 0 || column >= get("columns") || row >= get("rows") ? -1 : row * get("columns") + column;
  }

  canvas.addEventListener("pointerdown", (event) => {
    const i = at(event);                                 /* first find the patch, ... */
    if (i < 0 || event.button || get("mode") === "view") return;
    byHand = true;
    canvas.focus({ preventScroll: true });               /* ... then focus: a page that scrolls in between would move another patch under the pointer */
    byHand = keyboard = false; cursor = last = i;
    if (get("mode") === "pick") return pick(i);
    canvas.setPointerCapture(event.pointerId);
    painting = !mask[i];
    paint(i, painting);
  });
  canvas.addEventListener("pointermove", (event) => {
    for (const moved of (painting === null ? [event] : event.getCoalescedEvents?.() ?? [event])) {
      const i = at(moved);
      if (painting !== null && i >= 0 && i !== last) paintTo(i, painting);
    }
    point(at(event));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { painting = null; });
  canvas.addEventListener("pointerleave", () => { if (painting === null) point(-1); });

  /* ---- keyboard ---- */
  function go(i) { cursor = i; hover = -1; point(i); tell(i); }

  function move(event) {
    const [down, right] = ARROWS[event.key], row = Math.floor(cursor / get("columns")) + down, column = cursor % get("columns") + right;
    const hide = mask[cursor];
    if (row < 0 || column < 0 || row >= get("rows") || column >= get("columns")) return;
    go(row * get("columns") + column);
    if (event.shiftKey && get("mode") === "paint") paint(cursor, !!hide);
  }

  canvas.addEventListener("keydown", (event) => {
    if ((passes(event) && event.key !== "Escape") || get("mode") === "view") return;
    keyboard = true;
    const row = Math.floor(cursor / get("columns")) * get("columns");
    if (event.key in ARROWS) move(event);
    else if (event.key === "Home") go(row);
    else if (event.key === "End") go(row + get("columns") - 1);
    else if ((event.key === " " || event.key === "Enter") && get("mode") === "paint") paint(cursor, !mask[cursor]);
    else if (event.key === " " || event.key === "Enter") pick(cursor);
    else if (event.key === "Escape" && get("locked") >= 0) pick(get("locked"));
    else return;
    event.preventDefault(); draw();
  });
  canvas.addEventListener("focus", () => { keyboard = !byHand; draw(); });
  canvas.addEventListener("blur", () => {
    keyboard = false; painting = null; draw();
    setTimeout(() => { if (canvas.isConnected) point(-1); });         /* a grid that leaves the page has nobody to tell */
  });

  /* Letters are commands to JupyterLab, and "d d" deletes the cell. It leaves alone an element with this attribute, and it may look before anything
     in the page can stop the key (Notebook 7 does). So the attribute comes and goes with the key, for buttons and sliders around the grid as well. */
  function shield(event) {
    const zone = root.closest(".bl-widget") ?? root;
    if (!zone.contains(event.target)) return;
    if (passes(event)) event.target.removeAttribute("data-lm-suppress-shortcuts");
    else event.target.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  window.addEventListener("keydown", shield, true);

  /* ---- what Python says ---- */
  model.on("change:mask", () => { if (painting === null) { mask = get("mask").slice(); draw(); } });
  model.on("change:image", picture);
  for (const name of ["heat", "heat_alpha", "lines", "outlined", "locked", "hover"]) model.on(`change:${name}`, draw);
  model.on("change:labels", () => { if (bitmap) measure(); draw(); });
  for (const name of ["mode", "name", "caption", "rows", "columns", "width", "height"])
    model.on(`change:${name}`, () => { cursor = Math.min(cursor, count() - 1); mask = get("mask").slice(); dress(); });
  dress(); picture();
  return () => { asked = -1; window.removeEventListener("keydown", shield, true); bitmap?.close(); bitmap = null; };
}

export default { render };
