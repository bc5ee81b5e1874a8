/** The results as a picture: a bar for each contender in each case, beside its figure. */

import { allCases } from "./cases.ts";
import { contenderKinds } from "./contenders.ts";
import { digits } from "./markdown.ts";
import { type Run, rates } from "./results.ts";
import { spread } from "./statistics.ts";

const WIDTH = 860;
const LEFT = 190;
const RIGHT = 90;
const BAR = 14;
const GAP = 26;
const FONT = "font-family='sans-serif' font-size='11'";

const colours: Readonly<Record<string, string>> = { raw: "#888888", "ours-nbd": "#1f6fb4", "ours-ring": "#0b3d66" };
const OTHER = "#c98a3a";
const CHAIN = "#6aa3cf";

/** An SVG whose bars are as long as the median of the rounds, relative to the longest of their case. */
export function plot(run: Run): string {
  const parts: string[] = [];
  let y = GAP;
  for (const result of run.results) {
    const title = allCases.find(({ name }) => name === result.case)?.title ?? result.case;
    parts.push(text(8, y - 6, `${title}, ${result.mode}: 1000 operations a second`, "font-weight='bold'"));
    const rows = contenderKinds.flatMap((kind) => {
      const median = spread(rates(result, kind.name).filter((rate) => rate !== undefined))?.median;
      return median === undefined ? [] : [{ ...kind, median }];
    });
    const longest = Math.max(...rows.map(({ median }) => median));
    for (const { name, title: contender, median } of rows) {
      const width = Math.max(1, (median / longest) * (WIDTH - LEFT - RIGHT));
      const colour = colours[name] ?? (name.startsWith("ours-chain") ? CHAIN : OTHER);
      parts.push(
        text(LEFT - 6, y + BAR - 4, contender, "text-anchor='end'"),
        `<rect x='${LEFT}' y='${y}' width='${width.toFixed(1)}' height='${BAR - 3}' fill='${colour}'/>`,
        text(LEFT + width + 6, y + BAR - 4, digits(median / 1000), ""),
      );
      y += BAR;
    }
    y += GAP;
  }
  return [
    `<svg xmlns='http://www.w3.org/2000/svg' width='${WIDTH}' height='${y}' viewBox='0 0 ${WIDTH} ${y}'>`,
    `<rect width='100%' height='100%' fill='white'/>`,
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}

function text(x: number, y: number, content: string, attributes: string): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x='${x.toFixed(1)}' y='${y}' fill='black' ${FONT} ${attributes}>${escaped}</text>`;
}
