// Numbers of the expert under the pointer, or where the arrow keys lead; without scripts the map is the same, and the tables have the rest.
(() => {
  const { rows, kept, shares } = JSON.parse(document.getElementById("numbers").textContent);
  const map = document.getElementById("map"), readout = document.getElementById("readout");
  const here = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  here.setAttribute("class", "here"); here.setAttribute("width", 1); here.setAttribute("height", 1);
  const part = () => (document.querySelector('input[name="part"]:checked') || { value: "all" }).value;
  let at = null;
  const tell = () => {
    if (!at) return;
    const [row, expert] = at, share = shares[part()][row][expert];
    here.setAttribute("x", expert); here.setAttribute("y", row); map.append(here);
    const stays = kept.some((one) => one.includes("1")) ? (kept[row][expert] === "1" ? ", kept" : ", pruned") : "";
    const use = share ? `${(share / 100).toFixed(2)} % of the block’s choices` : "never or hardly ever chosen";
    readout.textContent = `Block ${rows[row]}, expert ${expert}: ${use}${stays}`;
  };
  const go = (row, expert) => {
    if (shares.all[row] === undefined || shares.all[row][expert] === undefined) return;
    at = [row, expert]; tell();
  };
  const point = (event) => {
    const box = map.getBoundingClientRect();
    const row = (event.clientY - box.top) / box.height * rows.length, expert = (event.clientX - box.left) / box.width * kept[0].length;
    go(Math.floor(row), Math.floor(expert));
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
  document.querySelectorAll('input[name="part"]').forEach((one) => one.addEventListener("change", tell));
})();
