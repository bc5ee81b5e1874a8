import { writeFileSync } from "node:fs";
import { ToolError, UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import type { Jobs } from "../cli/jobs.ts";
import { formatBytes, print, printJson } from "../cli/output.ts";
import { writeOut } from "../cli/raw-output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { type Extent, extentsOf } from "./extents.ts";
import { describeChain, type ImageDescription } from "./image.ts";
import { help, json, name } from "./options.ts";
import { asPng, asSvg, asText, cellsOf } from "./picture.ts";

const SECTOR = 512;
const COLUMNS = 64;
const MAX_COLUMNS = 1000;
const ROWS = 32;

/** A disk that can be mapped, with the images of its chain. */
export async function openChain(jobs: Jobs, path: string): Promise<{ chain: ImageDescription[]; sectors: number }> {
  const chain = await describeChain(jobs, path, { parents: true });
  for (const { problem, parentProblem } of chain) {
    const wrong = problem ?? parentProblem;
    if (wrong !== null) throw new ToolError(wrong.message, wrong.errno);
  }
  return { chain, sectors: Number((chain[0]?.size ?? 0n) / BigInt(SECTOR)) };
}

/** `vhd-util map`. */
export const map = suiteCommand("vhd-util", {
  name: "map",
  summary: "Shows which image of a chain has which part of the disk.",
  options: {
    name,
    svg: {
      long: "svg",
      description: "write an SVG picture to this file, or - for standard output",
      value: { name: "file", kind: "file" },
    },
    png: {
      long: "png",
      description: "write a PNG picture to this file, or - for standard output",
      value: { name: "file", kind: "file" },
    },
    columns: {
      long: "columns",
      description: `cells in a row, ${COLUMNS} by default`,
      value: { name: "N", kind: "text" },
    },
    rows: { long: "rows", description: `rows, ${ROWS} at most by default`, value: { name: "N", kind: "text" } },
    json: { ...json, description: "print the extents as JSON, one a line" },
    h: help,
  },
  manual: {
    details: [
      "Text has a dot for sectors that no image has and the level of the topmost image that has some (0 is the image " +
        "itself, 1 its parent): bold where all of the cell is there, dim where only a part is.",
    ],
    examples: [
      { text: "Look at a disk", command: "vhd-util map -n disk.vhd" },
      { text: "Draw it", command: "vhd-util map -n disk.vhd --svg disk.svg" },
    ],
  },
  async run({ options, operands }, jobs) {
    const { name: path } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const bounded = (text: string | undefined, byDefault: number) => {
      const value = text === undefined ? byDefault : parseNumber(text, "a number");
      if (value < 1 || value > MAX_COLUMNS) throw new UsageError(`expected a number from 1 to ${MAX_COLUMNS}`);
      return value;
    };
    const [columns, rows] = [bounded(options.columns, COLUMNS), bounded(options.rows, ROWS)];
    const { chain, sectors } = await openChain(jobs, path);
    const extents = extentsOf(jobs, { path, driver: "vhd" }, sectors);
    if (options.json) {
      for await (const { sector, sectors: length, level } of extents) {
        const image = level === null ? null : chain[level]?.path;
        printJson({ offset: sector * SECTOR, length: length * SECTOR, level, image });
      }
      return 0;
    }
    const owned = chain.map(() => 0);
    const cells = await cellsOf(counting(extents, owned), sectors, columns * rows);
    if (options.svg !== undefined) writeTo(options.svg, Buffer.from(asSvg(cells, columns, path)));
    if (options.png !== undefined) writeTo(options.png, asPng(cells, columns));
    if (options.svg !== undefined || options.png !== undefined) return 0;
    for (const line of asText(cells, columns)) print(line);
    const cell = cells[0]?.sectors ?? 0;
    print(`a letter is ${formatBytes(cell * SECTOR)} of ${formatBytes(sectors * SECTOR)}`);
    for (const [level, image] of chain.entries()) {
      print(`${level}: ${image.path} (${image.type}, ${formatBytes((owned[level] ?? 0) * SECTOR)} of the disk)`);
    }
    return 0;
  },
});

/** Passes extents on and counts the sectors of each level. */
async function* counting(extents: AsyncIterable<Extent>, owned: number[]): AsyncGenerator<Extent> {
  for await (const extent of extents) {
    if (extent.level !== null) owned[extent.level] = (owned[extent.level] ?? 0) + extent.sectors;
    yield extent;
  }
}

function writeTo(path: string, bytes: Buffer): void {
  if (path === "-") writeOut(bytes);
  else writeFileSync(path, bytes);
}
