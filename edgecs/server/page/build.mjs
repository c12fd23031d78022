// Builds a folder, static/ by default, from src/: `npm ci && npm run build`, see README.md.

import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const STATIC = process.argv[2] ?? "static";
const LIBRARIES = [
  "dompurify",
  "entities",
  "highlight.js",
  "linkify-it",
  "markdown-it",
  "mdurl",
  "punycode.js",
  "uc.micro",
];

/** Name, version and licence of a library, and the text of its licence. */
async function licence(name) {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(
    await readFile(`${folder}/package.json`, "utf8"),
  );
  for (const file of ["LICENSE", "LICENSE.txt", "LICENSE-MIT.txt"]) {
    const text = await readFile(`${folder}/${file}`, "utf8").catch(() => "");
    if (text) return `${name} ${version} (${license})\n\n${text.trim()}\n`;
  }
  throw new Error(`${name} has no licence file`);
}

await mkdir(STATIC, { recursive: true });
const { metafile } = await build({
  entryPoints: ["src/app.ts", "src/app.css"],
  outdir: STATIC,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  legalComments: "none", // licenses.txt has them
  metafile: true,
});
const bundled = new Set(
  Object.keys(metafile.inputs)
    .map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1])
    .filter((name) => name !== undefined),
);
const unlisted = [...bundled].filter((name) => !LIBRARIES.includes(name));
if (unlisted.length) throw new Error(`no licence is listed for ${unlisted}`);
const texts = await Promise.all(
  LIBRARIES.filter((name) => bundled.has(name)).map(licence),
);
await writeFile(`${STATIC}/licenses.txt`, texts.join(`\n${"-".repeat(72)}\n\n`));
for (const file of ["index.html", "icon.svg"]) {
  await copyFile(`src/${file}`, `${STATIC}/${file}`);
}
