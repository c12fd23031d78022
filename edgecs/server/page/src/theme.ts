/** Dark, light, or that of the system; other choices that outlast the page. */

const KEY = "edgecs.theme";
const THEMES = ["system", "light", "dark"] as const;

export type Theme = (typeof THEMES)[number];

export function currentTheme(): Theme {
  const stored = localStorage.getItem(KEY);
  return THEMES.find((theme) => theme === stored) ?? "system";
}

export function setTheme(theme: Theme): void {
  localStorage.setItem(KEY, theme);
  document.documentElement.dataset.theme = theme;
}

/** A choice between yes and no that is kept under a name. */
export function kept(name: string, usual: boolean): boolean {
  const value = localStorage.getItem(`edgecs.${name}`);
  return value === null ? usual : value === "yes";
}

export function keep(name: string, value: boolean): void {
  localStorage.setItem(`edgecs.${name}`, value ? "yes" : "no");
}
