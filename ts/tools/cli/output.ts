/**
 * What all commands share: arguments, help, what is said where, progress, running jobs, and their manual pages and
 * completions (`reference/`). What a command does with an image is not here.
 */

import { setImmediate } from "node:timers/promises";
import { styleText } from "node:util";
import prettyBytes from "pretty-bytes";
import { interrupt } from "./interrupt.ts";

/** What a shell says of a program whose reader went away (SIGPIPE). */
export const BROKEN_PIPE_STATUS = 141;

type Style = Parameters<typeof styleText>[0];

/** Where a text goes to; colours are for terminals, and NO_COLOR is heard. */
export type Stream = NodeJS.WriteStream;

/** The text in a style, if the stream is a terminal that shall have colours. */
export function styled(style: Style, text: string, stream: Stream = process.stdout): string {
  return styleText(style, text, { stream });
}

/** Text for people: what comes from a file, its name too, must not talk to a terminal. */
export function printable(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, (control) => `\\x${(control.codePointAt(0) ?? 0).toString(16).padStart(2, "0")}`);
}

/** Prints a line of the command's result. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Prints a value as one line of JSON. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** Tells the user something that is no result. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** Bytes as people read them. */
export function formatBytes(bytes: number): string {
  return prettyBytes(bytes, { binary: true });
}

/** The exit status of a program whose output was lost. */
let lostOutput: number | undefined;

/**
 * Has the program end when standard output can't be written: quietly when nobody reads it any more, as others do, and with
 * the status that `statusOf` yields for everything else. To be called once, early.
 */
export function watchOutput(name: string, statusOf: (error: Error) => number): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (lostOutput !== undefined) return;
    const unread = error.code === "EPIPE";
    if (!unread) say(`${name}: standard output: ${error.message}`);
    lostOutput = unread ? BROKEN_PIPE_STATUS : statusOf(error);
    interrupt(lostOutput);
  });
  // Nobody is left to be told.
  process.stderr.on("error", () => {});
}

/** Ends the program: with `status`, `process.exitCode` if there is none, or with another one when its output was lost. */
export async function endProgram(status?: number): Promise<never> {
  // Whether what was printed last could be written is told a moment later.
  await setImmediate();
  process.exit(lostOutput ?? status ?? process.exitCode);
}
