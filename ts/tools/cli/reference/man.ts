/** Manual pages in troff's man macros. */

import { version } from "../program.ts";
import type { Reference, ReferenceArgument, ReferenceOption } from "./model.ts";

const SECTION = 1;

/** The text, with nothing in it that troff takes for more than text. */
function escaped(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replace(/^([.'])/gm, "\\&$1");
}

function bold(text: string): string {
  return `\\fB${escaped(text)}\\fR`;
}

function italic(text: string): string {
  return `\\fI${escaped(text)}\\fR`;
}

function optionTerm({ flags, value }: ReferenceOption): string {
  const names = flags.map(bold).join(", ");
  return value === undefined ? names : `${names} ${italic(value.name)}`;
}

function argumentTerm({ name, required, variadic }: ReferenceArgument): string {
  const text = `${italic(name)}${variadic ? "..." : ""}`;
  return required ? text : `[${text}]`;
}

/** A term and what is to say about it. */
function tagged(term: string, text: string): string[] {
  return [".TP", term, escaped(text)];
}

function synopsis(names: readonly string[], reference: Reference): string {
  const parts = [names.map(bold).join(" ")];
  if (reference.commands.length > 0) parts.push(italic("command"));
  if (reference.options.length > 0) parts.push(`[${italic("options")}]`);
  return [...parts, ...reference.arguments.map(argumentTerm)].join(" ");
}

/** What a command and its subcommands take. */
function parameters({ options, arguments: args }: Reference): string[] {
  return [
    ...args.flatMap((argument) => tagged(argumentTerm(argument), argument.description)),
    ...options.flatMap((option) => tagged(optionTerm(option), option.description)),
  ];
}

function paragraphs(texts: readonly string[]): string[] {
  return texts.flatMap((text) => [".PP", escaped(text)]);
}

function subcommand(names: readonly string[], reference: Reference): string[] {
  const path = [...names, reference.name];
  if (reference.commands.length > 0) return reference.commands.flatMap((sub) => subcommand(path, sub));
  return [
    `.SS ${synopsis(path, reference)}`,
    escaped(reference.summary),
    ...paragraphs(reference.manual.details ?? []),
    ...parameters(reference),
    ...examples(reference),
  ];
}

function examples({ manual }: Reference): string[] {
  return (manual.examples ?? []).flatMap(({ text, command }) => [
    ".PP",
    escaped(text),
    ".PP",
    ".RS 4",
    ".nf",
    escaped(command),
    ".fi",
    ".RE",
  ]);
}

function section(title: string, lines: readonly string[]): string[] {
  return lines.length === 0 ? [] : [`.SH ${escaped(title)}`, ...lines];
}

/** The manual page of a command. */
export function manualPage(reference: Reference): string {
  const { name, summary, manual } = reference;
  const related = (manual.seeAlso ?? []).map((other) => `${bold(other)}(${SECTION})`);
  const lines = [
    `.TH "${escaped(name.toUpperCase())}" ${SECTION} "" "tapvhd ${version}"`,
    ...section("NAME", [`${escaped(name)} \\- ${escaped(summary.replace(/\.$/, ""))}`]),
    ...section("SYNOPSIS", [synopsis([name], reference)]),
    ...section("DESCRIPTION", [escaped(summary), ...paragraphs(manual.details ?? [])]),
    ...section("OPTIONS", parameters(reference)),
    ...section(
      "COMMANDS",
      reference.commands.flatMap((sub) => subcommand([name], sub)),
    ),
    ...(manual.sections ?? []).flatMap(({ title, paragraphs: texts }) =>
      section(title.toUpperCase(), paragraphs(texts)),
    ),
    ...section("EXAMPLES", examples(reference)),
    ...section(
      "EXIT STATUS",
      (manual.exitStatus ?? []).flatMap(([status, meaning]) => tagged(bold(status), meaning)),
    ),
    ...section("SEE ALSO", related.length === 0 ? [] : [related.join(", ")]),
  ];
  return `${lines.join("\n")}\n`;
}
