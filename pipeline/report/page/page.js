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

// A table that is wider than the screen says so.
const scrolled = [...document.querySelectorAll(".scroll")];
function measure() {
  for (const one of scrolled) one.classList.toggle("wide", one.scrollWidth > one.clientWidth + 1);
}
addEventListener("resize", measure);
for (const one of document.querySelectorAll("details")) one.addEventListener("toggle", measure);
measure();

// The navigation marks the section in view, and keeps it visible on a phone.
const nav = document.querySelector("nav");
const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
const sections = [...document.querySelectorAll("section[id]")];
function follow() {
  const passed = sections.filter((section) => section.getBoundingClientRect().top < innerHeight / 3);
  const current = passed.length ? links.get(passed[passed.length - 1].id) : undefined;
  for (const link of links.values()) {
    if (link === current && !link.hasAttribute("aria-current")) {
      link.setAttribute("aria-current", "true");
      nav.scrollTo({ left: link.offsetLeft - nav.clientWidth / 3 });
    } else if (link !== current) link.removeAttribute("aria-current");
  }
}
addEventListener("scroll", follow, { passive: true });
follow();
