"use strict";
{
  const maps = JSON.parse(document.getElementById("masks").textContent);
  const dialog = document.getElementById("mask");
  const part = (id) => document.getElementById(id);
  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const whole = (number) => number.toLocaleString("en");

  const bars = (id, path, width, height) => {
    const strip = part(id);
    strip.setAttribute("viewBox", `0 0 ${width} ${height}`);
    strip.querySelector("path").setAttribute("d", path);
  };

  const show = (mask) => {
    const [down, across] = mask.shape;
    const [height, width] = mask.grid;
    const [rows, columns] = mask.empty;
    part("mask-name").textContent = mask.name;
    part("mask-facts").textContent =
      `${whole(down)} × ${whole(across)}: ${whole(mask.kept)} of ${whole(mask.total)} weights kept, ` +
      `${percent(mask.density)}; ${whole(rows)} rows and ${whole(columns)} columns are empty`;
    const picture = part("picture");
    picture.src = mask.picture;
    picture.alt = `Where the kept weights of ${mask.name} are`;
    dialog.style.setProperty("--ratio", String(Math.min(6, Math.max(1 / 6, across / down))));
    bars("rows", mask.rows, 100, height);
    bars("columns", mask.columns, width, 100);
    const block = `${Math.round(down / height)} × ${Math.round(across / width)}`;
    const what = down > height || across > width ? `A dot is a block of about ${block} weights` : "A dot is a weight";
    part("mask-key").textContent =
      `${what}; full ink: ${percent(mask.full)} of it kept, or more. ` +
      `Bars: the share that is kept by row (right, at most ${percent(mask.most[0])}) ` +
      `and by column (below, at most ${percent(mask.most[1])}).`;
    dialog.showModal();
  };

  for (const cell of document.querySelectorAll("button.cell")) {
    cell.addEventListener("click", () => show(maps[cell.dataset.map][cell.dataset.matrix]));
  }
  part("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });

  const choice = part("run");
  if (choice) {
    const choose = () => {
      for (const map of document.querySelectorAll(".map")) map.hidden = map.id !== `map-${choice.value}`;
    };
    choice.addEventListener("change", choose);
    choose(); // a browser may remember another choice than the first
  }
}
