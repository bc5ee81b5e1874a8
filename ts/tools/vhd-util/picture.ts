/** Pictures of which image of a chain has which part of a disk: as text, SVG or PNG. */

import { PNG } from "pngjs";
import { styled } from "../cli/output.ts";
import type { Extent } from "./extents.ts";

/** A part of the disk: how many of its sectors are in images, and the topmost image that has any. */
export interface Cell {
  present: number;
  sectors: number;
  level: number | undefined;
}

/** Colours of the images of a chain, leaf first; parents further down share the last one. */
const colours = ["#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f"] as const;
const EMPTY = "#eeeeee";
const LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz";
const PIXEL = 8;

/** Divides a disk into cells and counts what they have. */
export async function cellsOf(extents: AsyncIterable<Extent>, sectors: number, count: number): Promise<Cell[]> {
  const each = Math.max(1, Math.ceil(sectors / count));
  const cells: Cell[] = Array.from({ length: Math.ceil(sectors / each) }, (_, index) => ({
    present: 0,
    sectors: Math.min(each, sectors - index * each),
    level: undefined,
  }));
  for await (const { sector, sectors: length, level } of extents) {
    if (level === null) continue;
    for (let at = sector; at < sector + length; ) {
      const index = Math.floor(at / each);
      const end = Math.min((index + 1) * each, sector + length);
      const cell = cells[index];
      if (cell !== undefined) {
        cell.present += end - at;
        cell.level = Math.min(cell.level ?? level, level);
      }
      at = end;
    }
  }
  return cells;
}

/** Lines of text: a dot for nothing, the number of the image's level for what is all there, and in brackets of colour else. */
export function asText(cells: readonly Cell[], width: number): string[] {
  const lines: string[] = [];
  for (let start = 0; start < cells.length; start += width) {
    const line = cells.slice(start, start + width).map(({ present, sectors, level }) => {
      if (level === undefined) return ".";
      const letter = LETTERS[Math.min(level, LETTERS.length - 1)] ?? "?";
      return present === sectors ? styled("bold", letter) : styled("dim", letter);
    });
    lines.push(line.join(""));
  }
  return lines;
}

/** A cell's colour: the more of it is there, the stronger. */
function colourOf({ present, sectors, level }: Cell): string {
  if (level === undefined) return EMPTY;
  const strong = colours[Math.min(level, colours.length - 1)] ?? EMPTY;
  const weight = 0.35 + (0.65 * present) / sectors;
  const mix = [1, 3, 5].map((at) => {
    const [own, ground] = [strong, EMPTY].map((colour) => Number.parseInt(colour.slice(at, at + 2), 16)) as [
      number,
      number,
    ];
    return Math.round(own * weight + ground * (1 - weight));
  });
  return `#${mix.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

function escapeXml(text: string): string {
  const entities: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replaceAll(/[&<>"]/g, (letter) => entities[letter] ?? letter).replaceAll(/\p{Cc}/gu, "?");
}

/** A picture for documents and browsers. */
export function asSvg(cells: readonly Cell[], width: number, title: string): string {
  const height = Math.ceil(cells.length / width);
  const squares: string[] = [];
  for (let index = 0; index < cells.length; ) {
    const cell = cells[index] as Cell;
    const colour = colourOf(cell);
    const [x, y] = [index % width, Math.floor(index / width)];
    // Neighbours of one colour are one rectangle.
    let run = 1;
    while (x + run < width && cells[index + run] !== undefined && colourOf(cells[index + run] as Cell) === colour)
      run++;
    if (cell.level !== undefined) {
      squares.push(
        `<rect x="${x * PIXEL}" y="${y * PIXEL}" width="${run * PIXEL}" height="${PIXEL}" fill="${colour}"/>`,
      );
    }
    index += run;
  }
  const size = `width="${width * PIXEL}" height="${height * PIXEL}"`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" ${size}>`,
    `<title>${escapeXml(title)}</title>`,
    `<rect ${size} fill="${EMPTY}"/>`,
    ...squares,
    "</svg>",
    "",
  ].join("\n");
}

/** The same as pixels. */
export function asPng(cells: readonly Cell[], width: number): Buffer {
  const rows = Math.ceil(cells.length / width);
  const png = new PNG({ width: width * PIXEL, height: rows * PIXEL });
  for (let y = 0; y < png.height; y++) {
    for (let x = 0; x < png.width; x++) {
      const cell = cells[Math.floor(y / PIXEL) * width + Math.floor(x / PIXEL)];
      const colour = Number.parseInt((cell === undefined ? EMPTY : colourOf(cell)).slice(1), 16);
      png.data.writeUInt32BE(((colour << 8) | 0xff) >>> 0, (y * png.width + x) * 4);
    }
  }
  return PNG.sync.write(png);
}
