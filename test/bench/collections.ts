/** What V8 tells of its garbage collections when it is started with `--trace-gc`. */

export interface Collection {
  /** How long the thread stood still. */
  readonly milliseconds: number;
}

/** Of one of V8's isolates: each thread has one. */
interface Line extends Collection {
  readonly isolate: string;
  /** How long the isolate had existed, in milliseconds. */
  readonly age: number;
}

const LINE = /^\[\d+:(0x\w+)\]\s+(\d+) ms: (?:Scavenge|Mark-Compact).*? MB, .*?([\d.]+) \/ [\d.]+ ms/gm;
/** So many lines of the beginning tell who is the main thread. */
const BEGINNING = 50;

/** The collections in all threads of a program but its main one. */
export function collectionsOfDisks(output: string): Collection[] {
  const lines = [...output.matchAll(LINE)].map(
    ([, isolate = "", age, milliseconds]): Line => ({ isolate, age: Number(age), milliseconds: Number(milliseconds) }),
  );
  const main = oldest(lines.slice(0, BEGINNING));
  return lines.filter(({ isolate }) => isolate !== main);
}

/** The isolate that is older than any other: one that tells of a lower age later is younger. */
function oldest(lines: readonly Line[]): string | undefined {
  const isolates = [...new Set(lines.map(({ isolate }) => isolate))];
  const isOlder = (one: string, other: string) =>
    lines.some(
      (line, index) =>
        line.isolate === one && lines.slice(index).some(({ isolate, age }) => isolate === other && age < line.age),
    );
  return isolates.find((one) => isolates.every((other) => other === one || isOlder(one, other))) ?? isolates[0];
}
