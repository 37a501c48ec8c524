/* A row of tiles, one of which is picked: words, heads, answers. Nothing is fetched; this file is all there is. */

const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

function part(name, tile) {
  const made = document.createElement("span");
  made.className = name;
  tile.append(made);
  return made;
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "bl-tiles";
  root.setAttribute("role", "listbox");
  root.setAttribute("aria-orientation", "horizontal");
  el.append(root);
  const get = (name) => model.get(name);
  let made = [], cursor = 0;

  function build(i) {                                    /* a tile is made once and changed afterwards, so that it keeps the focus */
    const tile = document.createElement("div");
    tile.className = "bl-pick";
    tile.setAttribute("role", "option");
    const parts = { picture: document.createElement("img"), text: part("bl-pick-text", tile), note: part("bl-pick-note", tile) };
    parts.picture.alt = "";
    parts.picture.draggable = false;
    tile.prepend(parts.picture);
    tile.addEventListener("click", () => { cursor = i; pick(i); dress(); });
    tile.addEventListener("focus", () => { cursor = i; dress(); });
    tile.addEventListener("keydown", (event) => press(event, i));
    for (const name of ["keyup", "keypress"]) tile.addEventListener(name, (event) => event.stopPropagation());
    root.append(tile);
    return { tile, ...parts };
  }

  function dress() {
    const tiles = get("tiles");
    root.setAttribute("aria-label", get("name"));
    while (made.length > tiles.length) made.pop().tile.remove();
    while (made.length < tiles.length) made.push(build(made.length));
    cursor = Math.max(0, Math.min(cursor, tiles.length - 1));
    tiles.forEach(({ text = "", note = "", fill = "", ink = "", picture = "", told = "" }, i) => {
      const { tile, ...parts } = made[i], picked = i === get("picked");
      tile.style.background = fill; tile.style.color = ink;
      tile.tabIndex = i === cursor ? 0 : -1;
      tile.setAttribute("aria-selected", picked);
      tile.setAttribute("aria-label", told || [text, note].filter(Boolean).join(", "));
      if (parts.picture.getAttribute("src") !== picture) { if (picture) parts.picture.src = picture; else parts.picture.removeAttribute("src"); }
      parts.picture.hidden = !picture;
      parts.text.textContent = text; parts.note.textContent = note;
    });
    root.dataset.picked = get("picked");
  }

  function pick(i) { model.set("picked", i); model.save_changes(); }

  function press(event, i) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    event.stopPropagation();                             /* letters are commands to JupyterLab */
    if (event.key in STEPS) made[Math.max(0, Math.min(i + STEPS[event.key], made.length - 1))].tile.focus();
    else if (event.key === "Home") made[0].tile.focus();
    else if (event.key === "End") made.at(-1).tile.focus();
    else if (event.key === " " || event.key === "Enter") { pick(i); dress(); }
    else return;
    event.preventDefault();
  }

  for (const name of ["tiles", "picked", "name"]) model.on(`change:${name}`, dress);
  dress();
}

export default { render };
