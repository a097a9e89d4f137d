// Pointing at a variant anywhere highlights it everywhere.
const all = [...document.querySelectorAll(".mark[data-variant], tr[data-variant]")];
function point(name) {
  document.body.classList.toggle("pointed", name !== null);
  for (const one of all) one.classList.toggle("on", one.dataset.variant === name);
}
for (const one of all) {
  for (const name of ["mouseenter", "focus"]) one.addEventListener(name, () => point(one.dataset.variant));
  for (const name of ["mouseleave", "blur"]) one.addEventListener(name, () => point(null));
}
