/** What V8 tells of its garbage collections when it is started with `--trace-gc`. */

export interface Collection {
  /** How long the thread stood still. */
  readonly milliseconds: number;
}

const LINE = /^\[\d+:(0x\w+)\].*? ms: (?:Scavenge|Mark-Compact).*? MB, .*?([\d.]+) \/ [\d.]+ ms/gm;

/** The collections in all threads of a program but its main one, which is the first that needs one. */
export function collectionsOfDisks(output: string): Collection[] {
  const lines = [...output.matchAll(LINE)];
  const main = lines[0]?.[1];
  return lines
    .filter(([, isolate]) => isolate !== main)
    .map(([, , milliseconds]) => ({ milliseconds: Number(milliseconds) }));
}
