/** What was found, for people. */

import { formatBytes, print, printable, styled } from "../cli/output.ts";
import type { Code, Finding, ImageReport, Result } from "./schema.ts";

const styles = { error: ["red", "bold"], warning: ["yellow"], note: ["dim"] } as const;

/** What to show. */
export interface TextOptions {
  /** Notes as well. */
  readonly notes: boolean;
  /** It says what would be done. */
  readonly dryRun: boolean;
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** The verdict on an image, without its name. */
export function verdict({ outcome, mended, images, error }: Result): string {
  if (outcome === "failed") return error ?? "failed";
  const sum = (of: "errors" | "warnings" | "notes") => images.reduce((total, image) => total + image[of], 0);
  const counts = [
    [sum("errors"), "error"],
    [sum("warnings"), "warning"],
    [sum("notes"), "note"],
  ] as const;
  const found = counts.filter(([count]) => count > 0).map(([count, noun]) => plural(count, noun));
  const words = mended ? (outcome === "mended" ? "mended" : "mended in part") : outcome === "left" ? "wrong" : "clean";
  const partly = images.every(({ complete }) => complete) ? "" : ", not checked to the end";
  return [words, ...(found.length > 0 ? [`(${found.join(", ")})`] : [])].join(" ") + partly;
}

function describeDisk({ disk, fileSize }: ImageReport): string {
  if (disk === null) return `${formatBytes(fileSize)}, no VHD that can be read`;
  const blocks = disk.blocks === 0 ? "" : `, ${disk.allocatedBlocks} of ${disk.blocks} blocks`;
  const creator = disk.creator === "" ? "" : `, made by ${printable(disk.creator)}`;
  return `${disk.type}, ${formatBytes(disk.size)}${blocks}${creator}`;
}

function place({ structure, offset }: Finding): string {
  return offset === null ? structure : `${structure} at ${offset}`;
}

function printFinding(finding: Finding): void {
  const { code, severity, message, found, expected, meaning, remedy } = finding;
  const values = found !== null && expected !== null ? `: found ${found}, expected ${expected}` : "";
  print(`  ${styled([...styles[severity]], severity)} ${styled("bold", code)} (${place(finding)})`);
  print(`    ${printable(message + values)}`);
  if (severity !== "note") {
    print(`    ${styled("dim", meaning)}`);
    print(`    ${styled("dim", `Remedy: ${remedy}`)}`);
  }
}

function printImage(image: ImageReport, options: TextOptions): void {
  print(`  ${styled("dim", describeDisk(image))}`);
  if (image.inUse) print(`  ${styled("yellow", "in use: what was found may have changed meanwhile")}`);
  for (const finding of image.findings) if (options.notes || finding.severity !== "note") printFinding(finding);
  for (const { code, count } of image.unlisted) print(`  and ${count} more of ${code}`);
  if (image.stats !== null) {
    const { allocated, written, notInParent, notInAncestors } = image.stats;
    print(
      `  sectors: ${allocated} allocated, ${written} written, ${notInParent} not in the parent, ${notInAncestors} in no ancestor`,
    );
  }
}

function printPlan(image: ImageReport, would: boolean): void {
  for (const { what, codes } of image.plan)
    print(`  ${would ? "would" : "did"}: ${printable(what)} (${codes.join(", ")})`);
  for (const { code, why } of image.left) print(`  ${would ? "would leave" : "left"} ${code}: ${why}`);
}

/** Prints what came of an image. */
export function printResult(result: Result, options: TextOptions): void {
  const { path, outcome, mended, images, before, undo } = result;
  const style = outcome === "clean" ? "green" : outcome === "mended" ? "cyan" : "red";
  print(`${styled("bold", printable(path))}: ${styled(style, verdict(result))}`);
  const silent = outcome === "clean" && !options.notes && images.every((image) => !image.inUse && image.stats === null);
  if (silent) return;
  if (before !== null && mended) {
    printImage(before, options);
    printPlan(before, false);
    if (undo !== null) print(printable(`  vhd-check --undo ${undo} takes it back`));
    return;
  }
  for (const [level, image] of images.entries()) {
    if (level > 0) print(`  parent ${printable(image.path)}`);
    printImage(image, options);
  }
  const [own] = images;
  if (options.dryRun && own !== undefined) printPlan(own, true);
}

/** Prints what kinds of findings mean. */
export function printCodes(codes: readonly Code[]): void {
  for (const { code, severity, meaning, remedy } of codes) {
    print(`${styled("bold", code)} (${styled([...styles[severity]], severity)})`);
    print(`  ${meaning}`);
    print(`  Remedy: ${remedy}`);
  }
}
