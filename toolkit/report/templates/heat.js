// Numbers of the expert under the pointer, or where the arrow keys lead; without scripts the maps are the same, and the tables have the rest.
(() => {
  const read = (id) => { const found = document.getElementById(id); return found && JSON.parse(found.textContent); };
  // Follows pointer and arrow keys on a map of rows × columns; `text` says what stands in the readout of a cell. Returns what says it again.
  const explore = (map, readout, rows, columns, text) => {
    const here = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    here.setAttribute("class", "here"); here.setAttribute("width", 1); here.setAttribute("height", 1);
    let at = null;
    const tell = () => {
      if (!at) return;
      here.setAttribute("x", at[1]); here.setAttribute("y", at[0]); map.append(here);
      readout.textContent = text(...at);
    };
    const go = (row, column) => {
      if (row < 0 || row >= rows || column < 0 || column >= columns(row)) return;
      at = [row, column]; tell();
    };
    const point = (event) => {
      const box = map.getBoundingClientRect(), wide = map.viewBox.baseVal.width;
      go(Math.floor((event.clientY - box.top) / box.height * rows), Math.floor((event.clientX - box.left) / box.width * wide));
    };
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    map.setAttribute("tabindex", 0);
    map.addEventListener("keydown", (event) => {
      const step = arrows[event.key];
      if (!step) return;
      event.preventDefault();
      at ? go(at[0] + step[0], at[1] + step[1]) : go(0, 0);
    });
    map.addEventListener("pointermove", point); map.addEventListener("pointerdown", point);
    return tell;
  };
  const use = read("numbers"), width = read("width-numbers");
  if (use) {
    const { rows, kept, shares } = use;
    const part = () => (document.querySelector('input[name="part"]:checked') || { value: "all" }).value;
    const chosen = kept.some((one) => one.includes("1"));
    const again = explore(document.getElementById("map"), document.getElementById("readout"), rows.length, (row) => shares.all[row].length,
      (row, expert) => {
        const share = shares[part()][row][expert], stays = chosen ? (kept[row][expert] === "1" ? ", kept" : ", pruned") : "";
        const much = share ? `${(share / 100).toFixed(2)} % of the block’s choices` : "never or hardly ever chosen";
        return `Block ${rows[row]}, expert ${expert}: ${much}${stays}`;
      });
    document.querySelectorAll('input[name="part"]').forEach((one) => one.addEventListener("change", again));
  }
  if (width) {
    const { rows, lost } = width;
    explore(document.getElementById("width-map"), document.getElementById("width-readout"), rows.length, (row) => lost[row].length,
      (row, expert) => {
        const gone = lost[row][expert], held = `its channels hold ${(100 - gone / 100).toFixed(2)} % of its energy`;
        return `Block ${rows[row]}, expert ${expert}: ${gone === -2 ? "pruned" : gone === -1 ? "no token reached it" : held}`;
      });
  }
})();
